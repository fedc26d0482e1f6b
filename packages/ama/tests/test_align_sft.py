"""``ama align sft`` end to end on a tiny model: rows, penalties, averages, replay, stopping, resumption."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from reproalign.ama.align.rows import read_rows
from reproalign.ama.align.trainer import ForgettingTrainer
from reproalign.ama.cli import main
from reproalign.common.errors import UserError
from reproalign.common.models.load import model_path
from reproalign.common.records import fingerprint_folder
from reproalign.common.testing import logged, refusal, run_command
from reproalign.common.testing.checkpoints import save_random

ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"Count to {n}."},
            {"role": "assistant", "content": "one two three " * (1 + n % 5)},
        ]
    }
    for n in range(32)
]
TEXTS = [{"text": f"the quick brown fox number {n} jumps over the lazy dog " * 4} for n in range(40)]
QUICK = [
    "align",
    "sft",
    "model.name=tiny:llama",
    "trainer.max_steps=6",
    "trainer.per_device_train_batch_size=2",
    "trainer.learning_rate=0.01",
    "trainer.warmup_steps=0",
    "trainer.logging_steps=1",
    "trainer.save_strategy=steps",
    "trainer.save_steps=2",
]
AVERAGED = ["averaging.name=ema", "averaging.decay=0.5", "averaging.reset_every=2"]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return found


def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def moved(folder: Path) -> float:
    start = tensors(Path(model_path("tiny:llama")))
    return sum(float((value - start[name]).square().sum()) for name, value in tensors(folder / "model").items()) ** 0.5


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write(folder / "rows.jsonl", ROWS)
    write(folder / "texts.jsonl", TEXTS)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Callable[..., Path]:
    made: dict[tuple[str, ...], Path] = {}

    def carry_out(*words: str) -> Path:
        if words not in made:
            folder = tmp_path_factory.mktemp("run") / "out"
            assert main([*QUICK, f"rows=[{data}/rows.jsonl]", f"output_dir={folder}", *words]) == 0
            made[words] = folder
        return made[words]

    return carry_out


def test_the_loss_is_on_the_response_and_measured_per_token(run: Callable[..., Path]) -> None:
    folder = run("eval_fraction=0.25")
    counts = record(folder)["rows"]
    assert (counts["rows"], counts["held_out"], counts["sequences"]) == (24, 8, 24)
    assert counts["supervised_tokens"] < counts["tokens"]
    assert logged(folder, "token_loss")[0] > logged(folder, "token_loss")[-1]
    assert record(folder)["metrics"]["eval_loss"] < logged(folder, "token_loss")[0]
    assert (folder / "plots" / "training.png").is_file()


def test_released_rows_are_blocks_of_whole_texts(run: Callable[..., Path]) -> None:
    folder = run("variant=released", "layout=lmflow", "block_size=16", "eval_fraction=0.25")
    counts = record(folder)["rows"]
    assert counts["tokens"] == 16 * counts["sequences"]
    assert counts["supervised_tokens"] == 15 * counts["sequences"]
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    ids = tokenizer("###Human: Count to 3.###Assistant: one two three", return_tensors="pt")["input_ids"]
    assert model(input_ids=ids, labels=ids).loss < 6


def test_every_form_of_a_row_is_the_same_dialogue(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    said = [{"from": who, "value": text} for who, text in (("gpt", "x"), ("human", "Hi"), ("gpt", "Hello"))]
    forms = [
        {"messages": turns},
        {"id": 1, "prompt": turns[:1], "messages": turns, "reward": 1.5},
        {"conversations": [*said, {"from": "human", "value": "y"}]},
        {"instruction": "Hi", "input": "", "output": "Hello"},
    ]
    path = write(tmp_path / "rows.jsonl", [*forms, {"conversations": []}])
    assert read_rows([str(path)], "rows") == ([turns] * 4, 1)
    lmflow = tmp_path / "lmflow"
    lmflow.mkdir()
    whole = {"type": "text_only", "instances": [{"text": "###Human: Hi###Assistant: Hello"}]}
    couple = {"type": "text2text", "instances": [{"input": "Hi", "output": " Hello"}]}
    (lmflow / "a.json").write_text(json.dumps(whole))
    (lmflow / "b.json").write_text(json.dumps(couple))
    expected: list[Any] = ["###Human: Hi###Assistant: Hello", ("Hi", " Hello")]
    assert read_rows([str(lmflow)], "rows") == (expected, 0)
    write(lmflow / "selected.jsonl", [forms[1]])
    assert read_rows([str(lmflow)], "rows") == ([turns], 0)


@pytest.mark.parametrize("row", [{}, {"messages": []}, {"conversations": [{"from": "x", "value": "y"}]}, {"text": 3}])
def test_rows_of_no_form_are_refused_with_their_line(tmp_path: Path, row: dict[str, Any]) -> None:
    path = write(tmp_path / "rows.jsonl", [{"text": "good"}, row])
    with pytest.raises(UserError, match=r"rows\.jsonl line 2: "):
        read_rows([str(path)], "rows")


@pytest.mark.parametrize(
    "name", [pytest.param("l1", marks=pytest.mark.slow), "l2", "kd", pytest.param("kl", marks=pytest.mark.slow)]
)
def test_without_weight_a_penalty_has_no_force_and_with_it_holds_the_model(run: Callable[..., Path], name: str) -> None:
    plain, control = run(), run(f"penalty.name={name}", "penalty.weight=0")
    for key, value in tensors(plain / "model").items():
        torch.testing.assert_close(tensors(control / "model")[key], value, rtol=0, atol=2e-5)
    weight = {"l1": 1e-3, "l2": 0.5, "kd": 1e3, "kl": 2.0}[name]
    held = run(f"penalty.name={name}", f"penalty.weight={weight}", "trainer.max_grad_norm=0")
    free = run("trainer.max_grad_norm=0")
    assert moved(held) < 0.99 * moved(free)
    assert logged(held, "penalty")[0] == pytest.approx(0, abs=1e-6)
    total = [loss + penalty for loss, penalty in zip(logged(held, "token_loss"), logged(held, "penalty"), strict=True)]
    assert logged(held, "loss")[:6] == pytest.approx(total[:6], rel=1e-3)


def test_a_released_penalty_is_the_mean_times_its_scale(run: Callable[..., Path]) -> None:
    folder = run("variant=released", "block_size=16", "penalty.name=l2", "penalty.weight=0.01")
    count = sum(value.numel() for value in tensors(Path(model_path("tiny:llama"))).values())
    found = record(folder)["penalty"]
    assert (found["factor"], found["mean"], found["root"]) == (pytest.approx(1e7), True, False)
    assert 0 < logged(folder, "penalty")[-1] < 1e7 * moved(folder) ** 2 / count * 100


def test_adapters_are_penalised_against_the_model_without_them(run: Callable[..., Path]) -> None:
    lora = ["model.lora.enabled=true", "model.lora.dropout=0"]
    for name in ("kd", "l2"):
        folder = run(*lora, f"penalty.name={name}", "penalty.weight=1")
        assert logged(folder, "penalty")[0] == pytest.approx(0, abs=1e-6)
        assert logged(folder, "penalty")[-1] > 0
        assert (folder / "model" / "adapter_model.safetensors").is_file()


def test_swa_is_the_mean_of_its_samples(run: Callable[..., Path]) -> None:
    """R14: SWA, from the checkpoints that it averages."""
    every = ["trainer.save_steps=1", "trainer.save_total_limit=null"]
    folder = run("averaging.name=swa", "averaging.start=1", "averaging.every=2", *every)
    samples = [tensors(folder / f"checkpoint-{step}") for step in (3, 5)]
    for name, value in tensors(folder / "model").items():
        torch.testing.assert_close(value, (samples[0][name] + samples[1][name]) / 2)


def test_ema_begins_at_the_start_and_a_reset_swaps_model_average_and_start(run: Callable[..., Path]) -> None:
    """R14: A ← d A + (1 - d) θ_t, step by step from the checkpoints."""
    every = ["trainer.save_steps=1", "trainer.save_total_limit=null"]
    plain = run("averaging.name=ema", "averaging.decay=0.5", *every)
    start = tensors(Path(model_path("tiny:llama")))
    for name, value in tensors(plain / "model").items():
        average = start[name]
        for step in range(1, 7):
            average = 0.5 * average + 0.5 * tensors(plain / f"checkpoint-{step}")[name]
        torch.testing.assert_close(value, average)
    reset = run(*AVERAGED, *every)
    for name, value in tensors(reset / "checkpoint-2").items():  # after the reset: the average of steps 1 and 2
        before = [tensors(plain / f"checkpoint-{step}")[name] for step in (1, 2)]
        torch.testing.assert_close(value, 0.25 * start[name] + 0.25 * before[0] + 0.5 * before[1])
    kept = load_file(reset / "checkpoint-2" / "averaged.safetensors")
    torch.testing.assert_close({name: kept[name] for name in start if name in kept}, {n: start[n] for n in start})
    for name, value in tensors(reset / "model").items():  # the average began again at step 4, and is not reset at 6
        five, six = (tensors(reset / f"checkpoint-{step}")[name] for step in (5, 6))
        torch.testing.assert_close(value, 0.25 * start[name] + 0.25 * five + 0.5 * six)


def test_replay_adds_so_many_tokens_of_texts_the_same_for_a_seed(run: Callable[..., Path], data: Path) -> None:
    """R15: replayed tokens are λ times the run's own, to one sequence."""
    replay = [f"replay.rows=[{data}/texts.jsonl]", "replay.ratio=0.5", "max_length=32"]
    counts = record(run(*replay))["rows"]
    assert counts["replay_sequences"] == round(0.5 * counts["tokens"] / 32)
    assert counts["replay_tokens"] == 32 * counts["replay_sequences"]
    prints = [
        record(run(*replay, *more))["fingerprints"]["data"]["train tokens"]["sha256"]
        for more in ([], ["trainer.max_steps=1"], ["seed=7", "trainer.max_steps=1"])
    ]
    assert prints[0] == prints[1] != prints[2]


def test_stopped_in_the_middle_and_resumed_gives_the_same_bits(
    run: Callable[..., Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*AVERAGED, "penalty.name=l2", "penalty.weight=0.1", "eval_fraction=0.25", "max_length=32"]
    options += [f"replay.rows=[{data}/texts.jsonl]", "replay.ratio=1"]
    whole = run(*options)
    words = [*QUICK, f"rows=[{data}/rows.jsonl]", f"output_dir={tmp_path / 'out'}", *options]
    original = ForgettingTrainer.training_step

    def dying(self: ForgettingTrainer, *args: Any, **kwargs: Any) -> Tensor:
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(ForgettingTrainer, "training_step", dying)
        assert main(words) == 130
    assert main(words) == 0
    assert record(tmp_path / "out")["resumed_from"] == "checkpoint-2"
    assert fingerprint_folder(tmp_path / "out" / "model") == fingerprint_folder(whole / "model")
    assert record(tmp_path / "out")["metrics"] == record(whole)["metrics"]


def test_early_stopping_ends_with_the_best_checkpoint(run: Callable[..., Path]) -> None:
    words = ["trainer.learning_rate=0.3", "trainer.max_steps=40", "trainer.eval_strategy=steps", "trainer.eval_steps=2"]
    folder = run("early_stopping.patience=2", "eval_fraction=0.25", *words)
    losses = logged(folder, "eval_loss")
    assert len(losses) < 20
    best = min(losses)
    assert record(folder)["metrics"]["eval_loss"] == pytest.approx(best, abs=1e-6)
    assert record(folder)["best_checkpoint"] == f"checkpoint-{2 * (losses.index(best) + 1)}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rows=[]"], "rows: at least one file of rows is needed"),
        (["rows=[none.jsonl]"], "rows=none.jsonl: no such file"),
        (["eval_fraction=1"], "eval_fraction=1.0 must be at least 0 and below 1"),
        (["eval_fraction=0.5", "eval_rows=[rows.jsonl]"], "eval_rows and eval_fraction both say"),
        (["layout=alpaca"], "unknown layout 'alpaca'"),
        (["response_separator=none"], "response_separator=none is for"),
        (["packing=none", "block_size=8"], "block_size is of packing=blocks"),
        (["block_size=1"], "block_size=1 must be at least 2"),
        (["block_size=8", "max_length=9"], "max_length is of packing=none"),
        (["packing=blocks", "group_size=0"], "group_size=0 must be at least 1"),
        (["max_length=1"], "max_length=1 must be at least 2"),
        (["loss_on=prompt"], "unknown loss_on 'prompt'"),
        (["normalisation=sum"], "unknown normalisation 'sum'"),
        (["penalty.name=l2"], "penalty.name=l2 needs penalty.weight"),
        (["averaging.every=2"], "averaging.*: without averaging.name=swa or ema"),
        (["averaging.name=swa", "averaging.every=0"], "averaging.every=0 must be at least 1"),
        (["averaging.name=ema", "averaging.decay=1"], "averaging.decay=1.0 must be at least 0 and below 1"),
        (["averaging.name=swa", "averaging.reset_every=3"], "averaging.reset_every is of averaging.name=ema"),
        (["averaging.name=swa", "trainer.load_best_model_at_end=true"], "use one of them"),
        (["replay.ratio=1"], "replay.ratio has no meaning without replay.rows"),
        (["replay.rows=[rows.jsonl]"], "replay.rows needs replay.ratio"),
        (["early_stopping.patience=2"], "early_stopping needs held-out rows"),
        (["early_stopping.patience=0", "eval_fraction=0.5"], "early_stopping.patience=0 must be at least 1"),
        (["early_stopping.threshold=1"], "early_stopping.threshold has no meaning"),
        (["model.dtype=float16"], "model.dtype=float16 cannot be trained itself"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.jsonl", ROWS[:4])
    common = ["align", "sft", "model.name=tiny:llama", "output_dir=out", "rows=[rows.jsonl]"]
    assert message in refusal("ama", main, [*common, *words], capsys, untouched=tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["block_size=4096", "eval_fraction=0"], "rows: 32 texts of"),
        (["block_size=256", "eval_fraction=0.05"], "eval_rows: 2 texts of"),
        (["averaging.name=swa", "averaging.start=6"], "take the first sample after step 7, and the run has 6"),
        (["replay.rows=[{data}/texts.jsonl]", "replay.ratio=90"], "replay.rows: 40 texts fill"),
        (["replay.rows=[{data}/texts.jsonl]", "replay.ratio=1e-6"], "is less than a block of"),
        (["replay.rows=[{data}/rows.jsonl]", "replay.ratio=1"], "no text in column 'text'; set replay.column"),
        (["trainer.eval_strategy=epoch"], "trainer.eval_strategy=epoch needs held-out rows"),
    ],
)
def test_rows_that_do_not_do_are_named(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    given = [word.format(data=data) for word in words]
    assert main([*QUICK, f"rows=[{data}/rows.jsonl]", f"output_dir={tmp_path / 'out'}", *given]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "model").exists()


def test_distillation_needs_a_position_more_than_the_row(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_random(tmp_path / "gpt2", "gpt2", seed=0, dtype=torch.float32)  # 32 learned positions
    words = [*QUICK, f"rows=[{data}/rows.jsonl]", f"model.name={model}", "penalty.name=kd", "penalty.weight=0.1"]
    assert main([*words, "block_size=32", f"output_dir={tmp_path / 'full'}"]) == 2
    assert "looks one further; set block_size or max_length to 31" in capsys.readouterr().err
    assert main([*words, "block_size=31", f"output_dir={tmp_path / 'room'}"]) == 0


CODE = "import sys; from reproalign.ama.cli import main; sys.exit(main())"


@pytest.mark.distributed
@pytest.mark.parametrize(
    "words",
    [
        ["penalty.name=l2", "penalty.weight=0.1", *AVERAGED],
        ["penalty.name=l1", "penalty.weight=0.001", "averaging.name=swa"],
        ["variant=released", "block_size=16", "penalty.name=kd", "penalty.weight=0.01"],
    ],
)
def test_two_processes_give_the_single_ones_run(data: Path, tmp_path: Path, words: list[str]) -> None:
    common = [*QUICK, f"rows=[{data}/rows.jsonl]", "trainer.max_grad_norm=0", "trainer.save_strategy=no", *words]
    cuts = {
        "alone": ["trainer.gradient_accumulation_steps=4"],
        "both": ["trainer.gradient_accumulation_steps=2", "launch=ddp", "launch.processes=2", "launch.main_port=0"],
    }
    for name, cut in cuts.items():
        done = run_command([sys.executable, "-c", CODE, *common, *cut, f"output_dir={tmp_path / name}"])
        assert done.returncode == 0, done.stderr[-3000:]
    for key in ("loss", "token_loss", "penalty"):
        assert logged(tmp_path / "both", key) == pytest.approx(logged(tmp_path / "alone", key), abs=5e-5)
    for name, value in tensors(tmp_path / "alone" / "model").items():
        torch.testing.assert_close(tensors(tmp_path / "both" / "model")[name], value, atol=2e-4, rtol=1e-3)
