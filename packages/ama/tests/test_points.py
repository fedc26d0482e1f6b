"""Points of a front: what is written comes back, and what cannot be a point is refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reproalign.ama.points import METHODS, Measure, Point, parse_points, read_points, write_points
from reproalign.common.errors import UserError

NUMBER = st.floats(allow_nan=False, allow_infinity=False)
MEASURE = st.builds(Measure, NUMBER, st.none() | st.floats(0, 1e9))
TEXT = st.text('abcé,"α| =', min_size=1, max_size=8).map(str.strip)
POINT = st.builds(
    Point,
    series=TEXT.filter(bool),
    method=st.sampled_from(sorted(METHODS)),
    reward=MEASURE,
    algorithm=st.sampled_from(["", "rsf", "dpo"]),
    part=st.sampled_from(["", "input", "3"]),
    alpha=st.none() | st.floats(0, 1),
    parameter=TEXT,
    value=TEXT,
    metrics=st.dictionaries(st.sampled_from(["reading", "bleu"]), MEASURE),
    notes=st.dictionaries(st.sampled_from(["figure", "note"]), TEXT.filter(bool)),
)


@given(st.lists(POINT, min_size=1, max_size=5))
def test_what_is_written_comes_back(tmp_path_factory: pytest.TempPathFactory, points: list[Point]) -> None:
    path = tmp_path_factory.mktemp("points") / "points.csv"
    write_points(points, path)
    assert read_points(path) == points
    assert read_points(path.parent) == points


def test_files_of_rewards_are_named_from_the_folder_of_the_table(tmp_path: Path) -> None:
    (point,) = parse_points("series,method,reward,rewards\nMA,ma,1,a/rewards.jsonl\n", "results=x", tmp_path)
    assert point.notes["rewards"] == str(tmp_path / "a" / "rewards.jsonl")


@pytest.mark.parametrize(
    "text,message",
    [
        ("series,reward\nMA,1\n", "results=x: column 'method' is missing"),
        ("series,method,reward,bleu,bleu\n", "results=x: column 'bleu' is there twice"),
        ("series,method,reward,\nMA,ma,1,2\n", "column 4 has no name"),
        ("series,method,reward,bleu_stderr\n", "column 'bleu_stderr' is there without 'bleu'"),
        ("series,method,reward\nMA,ma\n", "line 2 has 2 fields where the header has 3"),
        ("series,method,reward\n", "has no rows"),
        ("series,method,reward\n,ma,1\n", "line 2: series is empty"),
        ("series,method,reward\nMA,hmaa,1\n", r"line 2: unknown method 'hmaa' \(did you mean 'hma'\?\)"),
        ("series,method,reward,part\nMA,ma,1,upper\n", "line 2: part is 'upper'"),
        ("series,method,reward\nMA,ma,\n", "line 2: reward is empty"),
        ("series,method,reward\nMA,ma,high\n", "line 2: reward is 'high'; a number is needed"),
        ("series,method,reward,bleu\nMA,ma,1,nan\n", "line 2: bleu is nan; a finite number is needed"),
        ("series,method,reward,reward_stderr\nMA,ma,1,-1\n", "line 2: reward_stderr is -1.0"),
        ("series,method,reward,bleu,bleu_stderr\nMA,ma,1,,1\n", "line 2: bleu_stderr is there without bleu"),
    ],
)
def test_what_is_no_point_is_refused_in_one_sentence(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_points(text, "results=x")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be read; give a points\.csv, or the folder of a run"):
        read_points(tmp_path / "none.csv")
