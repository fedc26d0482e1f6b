"""Whatever is in files and words: a result, or one sentence of ours; never a traceback, and no row vanishes unsaid.

``FUZZ_EXAMPLES`` says how many examples each test tries, which are then drawn by ``--hypothesis-seed``.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from papers import CLIS
from reproalign.ama.cli import main as ama
from reproalign.common.cli import main as reproalign
from reproalign.common.command.recipes import parse_header, read_headers
from reproalign.common.config.data import DataConfig, SetConfig
from reproalign.common.data.load import PreferenceData, load_preferences
from reproalign.common.errors import UserError
from reproalign.common.generation.prompt_files import read_prompts
from reproalign.common.generation.samples import read_sampled, read_selected
from reproalign.common.merging.config import MergeConfig
from reproalign.common.merging.resolving import resolve
from reproalign.mmpo.cli import main as mmpo

EXAMPLES = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "8")),
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    database=None,
    phases=[phase for phase in Phase if phase is not Phase.explain],  # to trace every line takes the longest
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TEXTS = st.text(max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
TURNS = [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."}]
ROW = {
    "prompt": "How?",
    "chosen": TURNS,
    "rejected": [TURNS[0], {"role": "assistant", "content": "No."}],
    "messages": TURNS,
    "responses": ["a", "b"],
    "scores": [0.5, 1.5],
    "score_chosen": 2,
    "score_rejected": 1,
}


@st.composite
def altered(draw: Callable[..., Any], value: Any) -> Any:
    """``value`` with one of its parts removed, exchanged, or named otherwise."""
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 3)) == 0:
        return draw(VALUES)
    key = draw(st.sampled_from(list(value) if isinstance(value, dict) else range(len(value))))
    held = dict(value) if isinstance(value, dict) else dict(enumerate(value))
    way = draw(st.sampled_from(["remove", "alter", "alter", "rename"]))
    part = held.pop(key)
    if way == "alter":
        held[key] = draw(altered(part))
    elif way == "rename" and isinstance(value, dict):
        held[draw(TEXTS)] = part
    return held if isinstance(value, dict) else [held[name] for name in sorted(held)]


def contents(row: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """Files of lines like ``row``: whole, altered, cut off, or of anything else."""
    line = json.dumps(row)
    cut = st.integers(0, len(line)).map(lambda end: line[:end])
    lines = st.lists(
        st.one_of(st.just(line), altered(row).map(json.dumps), cut, TEXTS, st.just("[" * 2_000)), max_size=4
    )
    return lines.map(lambda found: "\n".join(found).encode(errors="surrogatepass")) | st.binary(max_size=60)


def refusal_of(call: Callable[[], Any]) -> str | None:
    """The one sentence that a call is refused with; None if it is not."""
    try:
        call()
    except UserError as error:
        return str(error)
    return None


def count_lines(content: bytes) -> int:
    return sum(1 for line in re.split(r"\r\n|\r|\n", content.decode()) if line.strip())


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
@EXAMPLES
@given(content=contents({key: ROW[key] for key in ("prompt", "chosen", "rejected", "score_chosen", "score_rejected")}))
def test_every_row_is_read_or_said_to_be_skipped(tmp_path, suffix, content):
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(content)
    data = DataConfig(sets={"own": SetConfig(path=str(path))}, on_error="skip")
    loaded: list[PreferenceData] = []
    refused = refusal_of(lambda: loaded.append(load_preferences(data, seed=0, rejects_dir=tmp_path)))
    if refused is not None:
        assert "\n" not in refused
        return
    facts = loaded[0].provenance["train"]
    (facts,) = facts["sets"].values() if "sets" in facts else [facts]
    if suffix == ".jsonl":
        assert facts["rows_read"] == count_lines(content)
    assert len(loaded[0].train) + facts["rows_rejected"] == facts["rows_read"]


@pytest.mark.parametrize("score", ["[]", '"high"', "true", "NaN", "1" * 400])
def test_a_score_that_is_no_finite_number_is_refused_with_its_row(tmp_path, score):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"prompt": "How?", "responses": ["a", "b"], "scores": [1, {score}]}}\n')
    data = DataConfig(sets={"own": SetConfig(path=str(path))})
    assert "rows.jsonl line 1: score 2" in str(refusal_of(lambda: load_preferences(data, seed=0)))


@EXAMPLES
@given(content=contents(ROW))
def test_rows_that_one_run_hands_to_another_are_all_read_or_refused(tmp_path, content):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    for read in (lambda path: read_prompts(str(path)), partial(read_sampled, scored=True), read_selected):
        rows: list[Any] = []
        refused = refusal_of(lambda read=read, rows=rows: rows.extend(read(path)))
        assert "rows.jsonl" in refused if refused is not None else len(rows) == count_lines(content)


@EXAMPLES
@given(text=st.text(alphabet=st.characters(codec="utf-8"), max_size=80))
def test_a_header_of_a_recipe_is_read_line_by_line(text):
    assert all(isinstance(value, str) for value in parse_header("# @package _global_\n# " + text).values())


SMOKE = [
    "experiment=smoke",
    "trainer.max_steps=3",
    "model.name=tiny:llama",
    "data.max_rows=4",
    "seed=1",
    "loss.beta=0.1",
]
WORDS = st.one_of(
    st.sampled_from(SMOKE),
    st.sampled_from([word.partition("=")[0] for word in SMOKE]),
    st.builds("{}={}".format, st.sampled_from([word.partition("=")[0] for word in SMOKE]), TEXTS),
    st.builds("{}{}".format, st.sampled_from(["+", "~", "--", "sweep.", "seeds=", "config="]), TEXTS),
    TEXTS,
)


@pytest.mark.parametrize("cli", CLIS, ids=lambda cli: cli.APP.command)
@EXAMPLES
@given(words=st.lists(WORDS, max_size=3))
def test_words_are_composed_or_refused(cli, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    verb = read_headers(cli.APP.package)["smoke"]["verb"]
    code = cli.main([*verb.split(), "--cfg", "experiment=smoke", *words])
    printed = capsys.readouterr()
    assert code == 0 or (code == 2 and f"{cli.APP.command}: error: " in printed.err), shlex.join(words)


@EXAMPLES
@given(content=VALUES.map(yaml.safe_dump) | st.binary(max_size=40).map(lambda data: data.decode("latin-1")))
def test_a_configuration_file_is_taken_or_refused(content, capsys, tmp_path):
    (tmp_path / "mine.yaml").write_text(content, encoding="utf-8")
    code = mmpo(["train", f"config={tmp_path}/mine.yaml", "--cfg"])
    assert code == 0 or (code == 2 and "mmpo: error: " in capsys.readouterr().err)


PLAN = {
    "merge_method": "ties",
    "base_model": "z",
    "models": [{"model": "a", "parameters": {"weight": 0.5, "density": [0.1, 0.9]}}, {"model": "b"}],
    "parameters": {"normalize": True, "lambda": 1.0},
    "slices": [{"sources": [{"model": "a", "layer_range": [0, 2]}]}],
    "dtype": "float32",
}
OWN_PLAN = {"method": "dare_ties", "base": "z", "models": ["a", "b"], "density": 0.5, "parts": {"layers.0": 0.5}}


@EXAMPLES
@given(content=st.one_of(altered(PLAN), altered(OWN_PLAN), VALUES).map(yaml.safe_dump) | TEXTS)
def test_a_merging_plan_is_taken_or_refused(content, tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_bytes(content.encode(errors="surrogatepass"))
    assert refusal_of(lambda: resolve(MergeConfig(output_dir="x", plan=str(path)))) != ""


@pytest.fixture(scope="module")
def record(tmp_path_factory) -> dict[str, Any]:
    """The record of a finished command."""
    folder = tmp_path_factory.mktemp("runs") / "study"
    assert ama(["study", "proposition", "samples=1000", "overlap=[0]", f"output_dir={folder}"]) == 0
    return json.loads((folder / "run.json").read_text())


@EXAMPLES
@given(data=st.data())
def test_a_record_is_shown_or_refused(data, record, capsys, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir(exist_ok=True)
    content = data.draw(altered(record).map(json.dumps) | st.binary(max_size=30))
    (folder / "run.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    for words in (["show", str(folder)], ["verify", str(folder), str(folder)]):
        code = reproalign(words)
        assert code in (0, 1) or (code == 2 and "reproalign: error: " in capsys.readouterr().err)
