"""Rows, labels and selections are read as the release writes them, and what cannot be meant is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reproalign.common.errors import UserError
from reproalign.dtm.rows import (
    check_clusters,
    is_placeholder,
    parse_clusters,
    parse_selection,
    read_labels,
    read_rows,
    selected_order,
)

ROW = {"instruction": "Name a moon.", "input": "", "output": "Europa."}


def write(path, *rows) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def test_rows_keep_their_places_and_their_sources(tmp_path):
    first = write(tmp_path / "a.jsonl", ROW, {}, {**ROW, "source": "lima"})
    second = write(tmp_path / "b.jsonl", {"instruction": "Hi", "output": "Ho", "id": 7})
    rows = read_rows([first, second])
    assert rows.column_names == ["instruction", "input", "output", "source"]
    assert rows[:]["source"] == [None, None, "lima", None]
    assert [is_placeholder(row) for row in rows] == [False, True, False, False]
    assert rows[3]["input"] is None
    assert rows.cache_files, "memory-mapped, not held"
    assert read_rows([second])[0]["output"] == "Ho"


def test_rows_that_changed_are_read_again(tmp_path):
    assert len(read_rows([write(tmp_path / "a.jsonl", ROW)])) == 1
    assert len(read_rows([write(tmp_path / "a.jsonl", ROW, ROW)])) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"instruction": ', "line 2: not valid JSON"),
        ({"instruction": "Hi"}, "line 2: an instruction row needs 'instruction' and 'output'"),
        ({"messages": []}, "a dialogue becomes one by 'dtm disperse'"),
        ({**ROW, "output": 4}, "line 2: output is 4; text is needed"),
    ],
)
def test_other_rows_are_refused_with_their_place(tmp_path, line, message):
    with pytest.raises(UserError, match=r"a\.jsonl") as error:
        read_rows([write(tmp_path / "a.jsonl", ROW, line)])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[0, 1]", "has 2 labels for 3 rows"),
        ('[0, "1", 2]', 'label 1 is "1"; cluster ids are whole numbers'),
        ("[0, 1, 1.0]", "label 2 is 1.0"),
        ("[true, 1, 1]", "label 0 is true"),
        ("[0, -1, 1]", "label 1 is -1"),
        (f"[0, {2**63}, 1]", "label 1 is 9223372036854775808; cluster ids are whole numbers from 0 on, below 2^63"),
        ("{}", "a JSON array of cluster ids is needed"),
        ("[0,", "not valid JSON"),
    ],
)
def test_label_files_are_checked(tmp_path, content, message):
    path = tmp_path / "labels.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"labels\.json") as error:
        read_labels(path, 3)
    assert message in str(error.value)


def test_a_label_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_labels(tmp_path / "none.json", 3)


def test_a_cluster_that_no_row_has_is_told_from_those_there_are():
    labels = np.array([0, 3, 0, 1])
    check_clusters(labels, [0, 3])
    check_clusters(labels, None)
    with pytest.raises(UserError, match=r"cluster=0\+2: no row has \[2\]; there are 0, 1, 3"):
        check_clusters(labels, [0, 2])
    with pytest.raises(UserError, match="there are 0, 1, 3"):
        check_clusters(labels, [])


def test_notations_of_the_release():
    assert parse_clusters("0+2") == [0, 2]
    assert parse_clusters(2) == [2]
    assert parse_clusters(None) is None
    assert parse_selection(["a,b", "c"], ["x,y,z"], None).rows == ["a", "b", "c"]
    for rows, labels, cluster in ([[], [], None], [["a"], [], "0"], [["a"], ["x,y"], "0"], [["a"], ["x"], "0,2"]):
        with pytest.raises(UserError):
            parse_selection(rows, labels, cluster)


def test_a_file_whose_name_holds_a_comma_is_one_file(tmp_path):
    path = write(tmp_path / "a,b.jsonl", ROW)
    assert parse_selection([path], [], None).rows == [path]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(0, 2**32 - 1), st.floats(0.01, 1.0))
def test_clusters_partition_the_rows_and_the_seed_decides_the_order(labels, seed, ratio):
    array = np.array(labels)
    whole = [selected_order(array, [cluster], seed, 1.0) for cluster in range(4)]
    assert sorted(np.concatenate(whole).tolist()) == list(range(len(labels)))
    for cluster, order in enumerate(whole):
        assert (array[order] == cluster).all()
        part = selected_order(array, [cluster], seed, ratio)
        assert part.tolist() == order[: int(len(order) * ratio)].tolist() or ratio == 1.0
    everything = selected_order(array, None, seed, 1.0)
    assert everything.tolist() == np.random.default_rng(seed).permutation(len(labels)).tolist()
