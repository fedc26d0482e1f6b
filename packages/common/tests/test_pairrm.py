"""PairRM: its sequences, its logit by hand, both published layouts, both orders, resumption, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import DebertaV2Config, DebertaV2Model

from reproalign.common.errors import UserError
from reproalign.common.invocation import Invocation
from reproalign.common.journal import sums_of
from reproalign.common.judging.ask import SIDES, Bout
from reproalign.common.judging.config import JudgeConfig, PairRMConfig
from reproalign.common.judging.endpoint import EndpointConfig
from reproalign.common.judging.pairrm import PairFormat, PairRM
from reproalign.common.judging.pairrm_files import load_pairrm
from reproalign.common.judging.pairwise import PairwiseJudge, batch_sizes, read_logits
from reproalign.common.testing.pairrm import save_tiny_pairrm, tiny_pairrm_tokenizer
from reproalign.common.verbs.judge import judge

TOKENIZER = tiny_pairrm_tokenizer()
PAD, CLS, SEP = 0, 1, 2
SOURCE, FIRST, SECOND = (TOKENIZER.get_vocab()[f"<|{name}|>"] for name in ("source", "candidate1", "candidate2"))
BOUTS = [
    Bout("what is a cat?", "an animal", "a fish"),
    Bout("two plus two", "4", "it is five, or so it seems to me, if you ask me, after some thought"),
    Bout("", "the same", "the same"),
    Bout("name a colour", "", "red"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pairrm")
    return {layout: save_tiny_pairrm(folder / layout, layout=layout, tasks=3) for layout in ("hf", "ranker")}


@pytest.fixture(scope="module")
def model(folders) -> PairRM:
    return load_pairrm(folders["hf"])


@pytest.fixture
def copy(folders, tmp_path) -> Callable[..., Path]:
    """Copy a folder with some fields of config.json replaced, or tensors changed by a function."""

    def make(layout: str = "hf", change: Callable[[dict[str, Any]], None] | None = None, **fields: Any) -> Path:
        folder = tmp_path / f"copy-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(folders[layout], folder)
        config = json.loads((folder / "config.json").read_text()) | fields
        (folder / "config.json").write_text(json.dumps({key: config[key] for key in config if config[key] != "gone"}))
        if change:
            tensors = load_file(folder / "model.safetensors")
            change(tensors)
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make


# Sequences


def parts(ids: list[int]) -> list[list[int]]:
    """The three parts of a sequence, each with its [CLS] and [SEP]."""
    starts = [place for place, token in enumerate(ids) if token == CLS] + [len(ids)]
    return [ids[start:end] for start, end in pairwise(starts)]


def test_a_sequence_has_three_framed_parts(model):
    ids = model.encode("Hi", "Yes", "no")
    assert [TOKENIZER.decode(part).replace(" ", "") for part in parts(ids)] == [
        "[CLS]<|source|>hi[SEP]",
        "[CLS]<|candidate1|>yes[SEP]",
        "[CLS]<|candidate2|>no[SEP]",
    ]


@given(st.tuples(*[st.integers(0, 2500)] * 3))
def test_over_long_texts_lose_their_ends_to_the_published_lengths(lengths):
    """The prompt has up to 1224 tokens; the responses share what it leaves of 2048; three of each are special."""
    sequence = PairFormat().encode(TOKENIZER, "p" * lengths[0], "a" * lengths[1], "b" * lengths[2])
    source, first, second = parts(sequence)
    budget = (2048 - len(source)) // 2
    assert len(source) == min(lengths[0] + 3, 1224)
    assert budget >= 412
    assert (len(first), len(second)) == (min(lengths[1] + 3, budget), min(lengths[2] + 3, budget))
    assert len(sequence) <= 2048
    assert all(part[-1] == SEP for part in (source, first, second))


@given(st.lists(st.sampled_from(["<|source|>", "<|candidate1|>", "<|candidate2|>", "[SEP]", "x", " "]), max_size=6))
def test_marks_within_a_text_are_not_taken_for_marks(model, words):
    text = "".join(words)
    ids = model.encode(text, text, text)
    assert [ids.count(token) for token in (SOURCE, FIRST, SECOND, SEP)] == [1, 1, 1, 3]


@pytest.mark.parametrize("layout", ["hf", "ranker"])
def test_texts_are_read_by_the_rules_of_tokenizer_json(folders, layout):
    """The class that the files name would keep the vocabulary alone, and not lower the case."""
    folder = folders[layout]
    assert json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"] == "DebertaV2Tokenizer"
    published = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = "<|source|>What IS\na  cat?"
    assert load_pairrm(folder).tokenizer.encode(text) == published.encode(text).ids


# The network


def test_the_logit_is_the_published_one(folders, model):
    """The mean over tasks of f([h_s; h_1]) - f([h_s; h_2]), from the tensors themselves."""
    tensors = load_file(folders["hf"] / "model.safetensors")
    backbone = DebertaV2Model(DebertaV2Config.from_pretrained(folders["hf"])).eval()
    prefix = "pretrained_model."
    backbone.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    ids = model.encode("two plus two", "four", "five")
    with torch.no_grad():
        states = backbone(torch.tensor([ids])).last_hidden_state[0]

    def head(mark: int) -> torch.Tensor:
        both = torch.cat([states[ids.index(SOURCE)], states[ids.index(mark)]])
        hidden = torch.tanh(tensors["head_layer.1.weight"] @ both + tensors["head_layer.1.bias"])
        return tensors["head_layer.4.weight"] @ hidden + tensors["head_layer.4.bias"]

    assert head(FIRST).shape == (3,)
    assert model.logits([ids]).item() == pytest.approx((head(FIRST) - head(SECOND)).mean().item(), abs=1e-5)


def test_batching_and_padding_change_nothing(model):
    sequences = [model.encode(bout.instruction, bout.first * n, bout.second) for n in (1, 30) for bout in BOUTS]
    alone = torch.cat([model.logits([ids]) for ids in sequences])
    together = model.logits(sequences)
    assert together.dtype == torch.float32
    assert alone.std() > 0.1
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_both_layouts_hold_the_same_model(folders, model, tmp_path):
    """And what is saved is of the layout of transformers, whatever was loaded."""
    ids = [model.encode(bout.instruction, bout.first, bout.second) for bout in BOUTS]
    ranker = load_pairrm(folders["ranker"])
    assert torch.equal(ranker.logits(ids), model.logits(ids))
    assert not json.loads((folders["ranker"] / "config.json").read_text()).keys() & {"hidden_size", "architectures"}
    ranker.network.save_pretrained(tmp_path)
    ranker.tokenizer.save_pretrained(tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".json", ".json", ".safetensors"]
    assert torch.equal(load_pairrm(tmp_path).logits(ids), model.logits(ids))


def test_the_ranker_s_own_lengths_count(copy):
    folder = copy("ranker", source_maxlength=20, candidate_maxlength=10)
    assert load_pairrm(folder).form == PairFormat(source_length=20, candidate_length=10)


def test_sixteen_bits_are_near(folders, model):
    ids = [model.encode(bout.instruction, bout.first, bout.second) for bout in BOUTS]
    half = load_pairrm(folders["hf"], torch.bfloat16)
    assert half.network.dtype == torch.bfloat16
    torch.testing.assert_close(half.logits(ids), model.logits(ids), rtol=0, atol=0.3)


def test_the_old_index_of_positions_is_no_weight(copy):
    def add(tensors: dict[str, Any]) -> None:
        tensors["pretrained_model.embeddings.position_ids"] = torch.arange(512)[None]

    load_pairrm(copy(change=add))


def test_files_that_are_not_pairrm_s_are_refused(copy, tmp_path):
    def refused(folder: Path) -> str:
        with pytest.raises(UserError) as error:
            load_pairrm(folder)
        return str(error.value)

    last = "pretrained_model.encoder.layer.1.output.dense.weight"
    table = "pretrained_model.embeddings.word_embeddings.weight"
    for layout in ("hf", "ranker"):
        assert f"lacks tensor {last} (1 in all)" in refused(copy(layout, lambda tensors: tensors.pop(last)))
        assert "lacks tensor head_layer.1.bias" in refused(
            copy(layout, lambda tensors: tensors.pop("head_layer.1.bias"))
        )
        extra = copy(layout, lambda tensors: tensors.update({"extra.weight": torch.zeros(2)}))
        assert "has an unknown tensor extra.weight" in refused(extra)
    assert f"lacks tensor {table}" in refused(copy("ranker", lambda tensors: tensors.pop(table)))
    assert "has another shape for tensor head_layer.1.bias" in refused(copy(hidden_size=128))
    assert "is not PairRM (['LlamaForCausalLM'])" in refused(copy(architectures=["LlamaForCausalLM"]))
    assert "is not PairRM (summareranker)" in refused(copy("ranker", ranker_type="summareranker"))
    assert "config.json has no n_tasks" in refused(copy(n_tasks="gone"))
    assert "config.json has no candidate_maxlength" in refused(copy("ranker", candidate_maxlength="gone"))
    assert f"cand1_prefix_id is 7 in config.json and {FIRST} in tokenizer.json" in refused(copy(cand1_prefix_id=7))
    for layout in ("hf", "ranker"):
        (broken := copy(layout) / "model.safetensors").write_bytes(b"not safetensors")
        assert "model.safetensors cannot be read" in refused(broken.parent)
        broken.rename(broken.with_name("pytorch_model.bin"))  # never read
        assert "model.safetensors cannot be read" in refused(broken.parent)
    (plain := copy() / "tokenizer.json").write_text(
        Tokenizer.from_file(str(copy() / "tokenizer.json")).to_str().replace("<|candidate2|>", "<|other|>")
    )
    assert "the tokenizer has no token <|candidate2|>" in refused(plain.parent)
    plain.write_text("{")
    assert "tokenizer.json cannot be read" in refused(plain.parent)
    plain.unlink()
    assert "there is no tokenizer.json" in refused(plain.parent)


# As a judge


def loaded(folder: Path, **settings: Any) -> PairwiseJudge:
    return PairwiseJudge(PairRMConfig(model=str(folder), **settings))


def test_exchanging_the_models_negates_the_mean_logit(folders, tmp_path):
    exchanged = [Bout(bout.instruction, bout.second, bout.first) for bout in BOUTS]
    means, results = [], []
    for name, bouts in (("one", BOUTS), ("other", exchanged)):
        logits = loaded(folders["hf"]).collect_logits(bouts, tmp_path / f"{name}-judgments")
        results.append(read_logits(logits, bouts, tmp_path / name, 0.9, PairRMConfig()))
        means.append([json.loads(line)["mean_logit"] for line in (tmp_path / name).read_text().splitlines()])
    assert means[0] == pytest.approx([-mean for mean in means[1]], abs=1e-6)
    assert means[0][2] == 0  # equal responses
    for ours, theirs in zip(*results, strict=True):
        assert (ours.wins, ours.ties, ours.losses) == (theirs.losses, theirs.ties, theirs.wins)
    assert results[0][1].ties == 1


def test_the_two_win_rates_by_hand(tmp_path):
    """First wins in both orders; wins more clearly than it loses; never; and equal."""
    by_hand = [(1.0, -2.0), (3.0, 1.0), (-1.0, 0.5), (0.0, 0.0)]
    logits = {(n, side): value for n, pair in enumerate(by_hand) for side, value in zip(SIDES, pair, strict=True)}
    by_order, by_mean = read_logits(logits, BOUTS, tmp_path / "verdicts", 0.95, PairRMConfig())
    assert (by_order.wins, by_order.ties, by_order.losses, by_order.win_rate) == (1, 2, 1, 0.5)
    assert by_order.consistent == 0.75  # a tie in both orders is the same verdict
    assert by_order.shown_first == (1 + 0 + 1 + 1 + 0 + 1 + 0.5 + 0.5) / 8
    assert (by_mean.wins, by_mean.ties, by_mean.losses, by_mean.win_rate) == (2, 1, 1, 0.625)
    rows = [json.loads(line) for line in (tmp_path / "verdicts").read_text().splitlines()]
    assert [row["score"] for row in rows] == [1, 0.5, 0, 0.5]
    assert [row["mean_logit"] for row in rows] == [1.5, 1, -0.75, 0]
    assert rows[1]["verdicts"] == [1, 1]
    assert rows[1]["logits"] == [3, 1]


@pytest.mark.parametrize("kept", [0, 1, 3, 7])
def test_an_interrupted_comparison_gives_the_bits_of_one_that_was_not(folders, tmp_path, kept):
    judge_ = loaded(folders["hf"], batch_size=3)
    whole = judge_.collect_logits(BOUTS, tmp_path / "whole")
    lines = (tmp_path / "whole").read_text().splitlines(keepends=True)
    (tmp_path / "cut").write_text("".join(lines[:kept]) + lines[kept][:20])
    assert judge_.collect_logits(BOUTS, tmp_path / "cut") == whole
    assert sorted((tmp_path / "cut").read_text().splitlines(keepends=True)) == sorted(lines)
    assert len(lines) == 8


def test_judgments_of_other_files_are_refused(folders, tmp_path):
    judge_ = loaded(folders["hf"])
    judge_.collect_logits(BOUTS, tmp_path / "judgments")
    with pytest.raises(UserError, match="another instruction"):
        judge_.collect_logits(BOUTS[::-1], tmp_path / "judgments")
    sums_of(tmp_path / "judgments").unlink()  # an earlier version wrote none
    (tmp_path / "judgments").write_text('{"index": 0, "shown_first": "first", "logit": "high"}\n')
    with pytest.raises(UserError, match=r"index, shown_first and logit \(number\) are needed"):
        judge_.collect_logits(BOUTS, tmp_path / "judgments")


def test_logits_that_are_not_finite_are_refused(copy, tmp_path):
    folder = copy(change=lambda tensors: tensors["head_layer.4.weight"].fill_(float("inf")))
    with pytest.raises(UserError, match=r"pairrm\.dtype=float32: a logit of .* is not finite"):
        loaded(folder).collect_logits(BOUTS, tmp_path / "judgments")


# The verb


@pytest.fixture
def run(folders, tmp_path) -> Callable[..., Path]:
    """Judge the bouts' two sets of responses; give the run's folder."""

    def go(**settings: Any) -> Path:
        for name in SIDES:
            rows = [{"instruction": b.instruction, "output": getattr(b, name), "generator": name} for b in BOUTS]
            if not (tmp_path / f"{name}.json").exists():
                (tmp_path / f"{name}.json").write_text(json.dumps(rows))
        folder = tmp_path / "out"
        files = {name: str(tmp_path / f"{name}.json") for name in SIDES}
        settings = {"pairrm": PairRMConfig(model=str(folders["hf"])), **files, **settings}
        words = {"command": ["judge"], "package": "reproalign.common", "verb": "judge", "schema": "", "target": ""}
        judge(JudgeConfig(output_dir=str(folder), **settings), Invocation(**words, config={"output_dir": str(folder)}))
        return folder

    return go


def test_the_verb_records_verdicts_logits_and_weights(run, folders, capsys):
    folder = run()
    record = json.loads((folder / "run.json").read_text())
    metrics = record["metrics"]
    assert metrics["wins"] + metrics["ties"] + metrics["losses"] == 4
    assert metrics["unreadable"] == 0
    assert metrics["mean_logit"]["ties"] == 1
    assert metrics["low"] < metrics["win_rate"] < metrics["high"]
    assert record["fingerprints"]["weights"]["pairrm"]["name"] == str(folders["hf"])
    assert record["fingerprints"]["data"].keys() == {"first", "second"}
    assert len((folder / "judgments.jsonl").read_text().splitlines()) == 8
    shown = capsys.readouterr().out
    assert "first against second" in shown
    assert "win rate by the mean logit" in shown


def test_mistakes_leave_nothing(run, tmp_path, copy):
    cases: list[tuple[str, dict[str, Any]]] = [
        (r"pairrm\.model=/nowhere: no such folder", {"pairrm": PairRMConfig(model="/nowhere")}),
        (r"no such folder, and the Hub does not give it", {"pairrm": PairRMConfig(model="no-one/nothing")}),
        (r"is not PairRM", {"pairrm": PairRMConfig(model=str(copy(architectures=["Other"])))}),
        (r"pairrm\.revision=main is for the Hub", {"pairrm": PairRMConfig(model=str(copy()), revision="main")}),
        (r"pairrm\.dtype is given without pairrm\.model", {"pairrm": PairRMConfig(dtype="bfloat16")}),
        (r"both endpoint\.model and pairrm\.model", {"endpoint": EndpointConfig(model="m")}),
        (r"both answers and pairrm\.model", {"answers": "answers.jsonl"}),
        (r"template is for a judge that reads questions", {"template": "template.txt"}),
    ]
    for message, settings in cases:
        with pytest.raises(UserError, match=message):
            run(**settings)
    for name in SIDES:
        (tmp_path / f"{name}.json").write_text("[]")
    with pytest.raises(UserError, match=r"first\.json"):
        run()
    assert not (tmp_path / "out").exists()


# One order, and files of other makers


def test_one_order_compares_every_instruction_once(run, folders):
    _, rows = judged(run, folders)
    metrics, once = judged(run, folders, orders="one")
    assert [row["logit"] for row in once] == pytest.approx([row["logits"][0] for row in rows], abs=1e-5)
    assert metrics["mean_logit"] is None
    assert metrics["consistent"] is None
    assert metrics["win_rate"] == sum(row["logits"][0] > 0 for row in rows) / len(BOUTS)


def judged(run: Callable[..., Path], folders: dict[str, Path], **settings: Any) -> tuple[Any, list[dict[str, Any]]]:
    """Judge, and give the metrics and verdicts; the folder is free again."""
    folder = run(pairrm=PairRMConfig(model=str(folders["hf"]), **settings))
    rows = [json.loads(line) for line in (folder / "verdicts.jsonl").read_text().splitlines()]
    metrics = json.loads((folder / "run.json").read_text())["metrics"]
    compared = (folder / "judgments.jsonl").read_text().splitlines()
    assert len(compared) == len(BOUTS) * (1 if settings else 2)
    shutil.rmtree(folder)
    return metrics, rows


@pytest.mark.parametrize("ties,expected", [("half", (2, 1, 1, 0.625)), ("loss", (2, 0, 2, 0.5))])
def test_a_tie_in_one_order_counts_half_or_nothing(tmp_path, ties, expected):
    logits = {(n, SIDES[0]): value for n, value in enumerate((1.0, 0.0, -2.0, 0.5))}
    config = PairRMConfig(orders="one", ties=ties)
    result, by_mean = read_logits(logits, BOUTS, tmp_path / "verdicts", 0.95, config)
    assert (result.wins, result.ties, result.losses, result.win_rate) == expected
    assert by_mean is None


@given(st.integers(0, 500), st.integers(1, 40))
def test_batches_differ_by_one_at_most_and_are_none_too_large(count, most):
    sizes = batch_sizes(count, most)
    assert sum(sizes) == count
    assert len(sizes) == count // most + 1
    assert max(sizes) <= most
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


def test_a_wrong_order_or_tie_is_refused(run):
    for message, settings in (
        (r"pairrm\.ties=loss is for one order", {"model": "x", "ties": "loss"}),
        (r"pairrm\.orders is given without pairrm\.model", {"orders": "one"}),
    ):
        with pytest.raises(UserError, match=message):
            run(pairrm=PairRMConfig(**settings))


def test_samples_are_judged_as_they_are_and_outputs_from_a_marker_on(run, tmp_path):
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": BOUTS[0].instruction}]
    sampled = tmp_path / "sampled"
    sampled.mkdir()
    row = {"id": 0, "prompt": prompt, "responses": ["an animal", "not this one"]}
    (sampled / "responses.jsonl").write_text(json.dumps(row) + "\n")
    other = [
        {
            "instruction": BOUTS[0].instruction,
            "output": f"<|user|>\n?\n<|assistant|>\n{BOUTS[0].first}",
            "generator": "x",
        }
    ]
    (tmp_path / "other.json").write_text(json.dumps(other))
    folder = run(first=str(sampled), second=str(tmp_path / "other.json"), output_marker="\n<|assistant|>\n")
    (verdict,) = [json.loads(line) for line in (folder / "verdicts.jsonl").read_text().splitlines()]
    assert verdict["instruction"] == BOUTS[0].instruction
    assert verdict["mean_logit"] == 0  # the marker cut away, both responses are the same
