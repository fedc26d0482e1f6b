"""``ama align dpo`` and ``ama reward`` end to end on tiny models, and the loss that they share."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

from reproalign.ama.align.config import DPOConfig
from reproalign.ama.align.dpo import tokenized
from reproalign.ama.align.objective import bradley_terry
from reproalign.ama.cli import main
from reproalign.common.config.data import SetConfig
from reproalign.common.data.load import load_preferences
from reproalign.common.models.tiny_tokenizers import tiny_tokenizer
from reproalign.common.records import fingerprint_folder
from reproalign.common.reward.reading import Reader
from reproalign.common.reward.rules import RewardRules, read_rules
from reproalign.common.testing import logged, refusal
from reproalign.common.training.pairs import PairTrainer

QUICK = [
    "model.name=tiny:llama",
    "trainer.max_steps=6",
    "trainer.per_device_train_batch_size=2",
    "trainer.gradient_accumulation_steps=1",
    "trainer.learning_rate=0.003",
    "trainer.logging_steps=1",
]


def pair(number: int, length: int = 1) -> dict[str, Any]:
    prompt = [{"role": "user", "content": f"Count to {number}."}]
    sides = {"chosen": "one two three", "rejected": "no, red and green " * length}
    return {"prompt": prompt, **{k: [{"role": "assistant", "content": v}] for k, v in sides.items()}}


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    parts = {
        "pairs": [*map(pair, range(24)), pair(1, 200)],
        "eval_pairs": [pair(n) for n in range(30, 38)],
    }
    for name, rows in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def files(data: Path) -> list[str]:
    return [f"data.sets.own.path={data}/pairs.jsonl", f"data.sets.own.eval_path={data}/eval_pairs.jsonl"]


def test_the_loss_of_a_pair_is_the_bradley_terry_likelihood() -> None:
    """R6, by the ratio of exponentials."""
    chosen, rejected = torch.tensor([1.5, -2.0, 0.0]), torch.tensor([0.5, 3.0, 0.0])
    expected = [-math.log(math.exp(a) / (math.exp(a) + math.exp(b))) for a, b in zip(chosen, rejected, strict=True)]
    torch.testing.assert_close(bradley_terry(chosen, rejected), torch.tensor(expected))


def test_pairs_are_laid_out_as_lmflow_has_them(data: Path) -> None:
    config = DPOConfig(layout="lmflow")
    config.data.sets["own"] = SetConfig(path=str(data / "eval_pairs.jsonl"))
    tokenizer = tiny_tokenizer()
    row = tokenized(load_preferences(config.data, seed=0).train, tokenizer, config)[0]
    cut, ids = row["chosen_prompt_length"], row["chosen_input_ids"]
    assert tokenizer.decode(ids[:cut]) == "###Human: Count to 30.###Assistant:"
    assert tokenizer.decode(ids[cut:-1]) == " one two three"
    assert ids[-1] == tokenizer.eos_token_id


def test_dpo_keeps_the_evaluation_with_the_lowest_loss(data: Path, tmp_path: Path) -> None:
    """At a learning rate at which the loss soon rises again."""
    words = ["align", "dpo", *QUICK, *files(data), "trainer.num_train_epochs=3", f"output_dir={tmp_path / 'out'}"]
    assert main([*words, "trainer.learning_rate=1.0"]) == 0
    folder = tmp_path / "out"
    losses = logged(folder, "eval_loss")
    chosen = record(folder)["selected"]
    assert chosen["eval_loss"] == pytest.approx(min(losses[:6]), abs=1e-6)
    assert record(folder)["metrics"]["eval_loss"] == pytest.approx(min(losses[:6]), abs=1e-5)
    assert 0 < chosen["epoch"] <= 0.5 * chosen["step"]


def test_dpo_moves_towards_what_was_chosen_and_resumes_to_the_same_bits(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R8: log 2 at the start, where policy and reference are one; lower, on held-out pairs too, after training."""
    words = ["align", "dpo", *QUICK, *files(data)]
    assert main([*words, f"output_dir={tmp_path / 'whole'}"]) == 0
    assert logged(tmp_path / "whole", "loss")[0] == pytest.approx(math.log(2), abs=1e-5)
    found = record(tmp_path / "whole")["metrics"]
    assert found["eval_loss"] < math.log(2) and found["eval_accuracy"] > 0.9  # noqa: PT018
    original = PairTrainer.training_step

    def dying(self: PairTrainer, *args: Any, **kwargs: Any) -> Tensor:
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(PairTrainer, "training_step", dying)
        assert main([*words, f"output_dir={tmp_path / 'stopped'}"]) == 130
    assert main([*words, f"output_dir={tmp_path / 'stopped'}"]) == 0
    folders = [tmp_path / name / "model" for name in ("whole", "stopped")]
    assert fingerprint_folder(folders[0]) == fingerprint_folder(folders[1])


def test_a_reward_model_drops_long_pairs_and_says_how_it_reads(data: Path, tmp_path: Path) -> None:
    words = ["reward", *QUICK, *files(data), "trainer.max_steps=20", f"output_dir={tmp_path / 'out'}"]
    assert main(words) == 0
    found = record(tmp_path / "out")
    assert found["pairs"] == {"train": 24, "train_dropped": 1, "evaluation": 8, "evaluation_dropped": 0}
    assert found["metrics"]["eval_accuracy"] == 1.0
    assert found["metrics"]["eval_loss"] < 0.5
    model = tmp_path / "out" / "model"
    assert load_file(model / "model.safetensors")["score.weight"].shape[0] == 1
    rules = read_rules(str(model), None)
    assert rules == RewardRules(
        "last_not_pad", layout="lmflow", truncation_side="right", special_tokens="own_once", max_length=512
    )
    reader = Reader(AutoTokenizer.from_pretrained(model), rules)
    turns = [*pair(3)["prompt"], *pair(3)["chosen"]]
    assert reader.render(turns) == "###Human: Count to 3.###Assistant: one two three"


def test_the_verb_score_reads_as_the_training_did(data: Path, tmp_path: Path) -> None:
    assert main(["reward", *QUICK, *files(data), "trainer.max_steps=1", f"output_dir={tmp_path / 'rm'}"]) == 0
    rows = {"id": 0, "prompt": pair(3)["prompt"], "responses": ["one two three", "no, red and green "]}
    (tmp_path / "responses.jsonl").write_text(json.dumps(rows) + "\n")
    given = [f"responses={tmp_path / 'responses.jsonl'}", f"output_dir={tmp_path / 'scored'}"]
    assert main(["score", f"model.name={tmp_path / 'rm' / 'model'}", *given]) == 0
    (scored,) = (json.loads(line) for line in (tmp_path / "scored" / "scored.jsonl").read_text().splitlines())
    assert len(set(scored["scores"])) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["align", "dpo", "beta=0"], "beta=0.0 must be above 0"),
        (["align", "dpo", "layout=alpaca"], "unknown layout 'alpaca'"),
        (["align", "dpo", "layout=chat", "response_separator=none"], "response_separator=none is for"),
        (["align", "dpo", "evaluations_per_epoch=0"], "evaluations_per_epoch=0 must be at least 1"),
        (
            ["align", "dpo", "select_best=false", "evaluations_per_epoch=4"],
            "evaluations_per_epoch is of select_best=true",
        ),
        (["align", "dpo", "trainer.load_best_model_at_end=false"], "is set by select_best; remove it"),
        (["align", "dpo", "text.system_message=hi"], "text.system_message is for layout=chat"),
        (["align", "dpo", "reference.mode=adapter-disabled"], "needs adapters"),
        (["reward", "text.overlong=cut"], "unknown text.overlong 'cut'"),
        (["reward", "text.layout=alpaca"], "unknown text.layout 'alpaca'"),
        (["reward", "text.max_length=2"], "max_length=2 must be at least 3"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair(1)) + "\n")
    common = ["model.name=tiny:llama", "output_dir=out", "data.sets.own.path=pairs.jsonl"]
    assert message in refusal("ama", main, [*words, *common], capsys, untouched=tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["align", "dpo"], "select_best needs held-out pairs"),
        (["align", "dpo", "select_best=false", "trainer.eval_strategy=epoch"], "needs held-out pairs"),
        (["reward", "trainer.eval_strategy=epoch"], "needs held-out pairs"),
    ],
)
def test_without_held_out_pairs_nothing_is_chosen(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main([*words, *QUICK, f"data.sets.own.path={data}/pairs.jsonl", f"output_dir={tmp_path / 'out'}"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "model").exists()
