"""Embeddings on disk: the same bytes for any number of processes and after any interruption."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reproalign.common.errors import UserError
from reproalign.common.files import write_json
from reproalign.dtm.disperse.embed import embed_shards, hash_texts, read_texts, share, text_of
from reproalign.dtm.disperse.embeddings import MANIFEST, Embeddings, normalise, open_embeddings, shard_path, write_shard

ROW = {"instruction": "Add.", "input": "1, 2", "output": "3"}


def texts(count: int) -> list[str]:
    return [f"text {number}" for number in range(count)]


class Encoder:
    """Embeds a text by the batch it stands in: other batches would give other bytes."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.calls, self.stop_after = 0, stop_after

    def __call__(self, part: list[str]) -> np.ndarray:
        self.calls += 1
        if self.stop_after is not None and self.calls > self.stop_after:
            raise KeyboardInterrupt
        return np.array([[int(text.split()[1]) + 1, len(part), place] for place, text in enumerate(part)], np.float32)


def embed(folder: Path, count: int, encoder: Encoder, **options: int) -> None:
    given = {"rows": count, "shard_size": 6, "batch_size": 1, **options}
    embed_shards(iter(texts(count)), folder, lambda: encoder, **given)


def stored(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("shard-*.npy")}


@given(shards=st.integers(0, 100), processes=st.integers(1, 9))
def test_every_shard_is_of_one_process(shards, processes):
    dealt = [number for rank in range(processes) for number in share(shards, rank, processes)]
    assert sorted(dealt) == list(range(shards))


@given(count=st.integers(1, 40), processes=st.integers(1, 4))
def test_any_number_of_processes_writes_the_same(tmp_path_factory, count, processes):
    alone, together = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("together")
    embed(alone, count, Encoder())
    for rank in range(processes):
        embed(together, count, Encoder(), rank=rank, processes=processes)
    assert stored(together) == stored(alone)
    assert len(stored(alone)) == -(-count // 6)


@given(count=st.integers(8, 40), stop_after=st.integers(0, 8))
def test_an_interruption_changes_nothing(tmp_path_factory, count, stop_after):
    """Whole shards are kept, and the model is not even loaded for nothing."""
    alone, resumed = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("resumed")
    embed(alone, count, Encoder())
    try:
        embed(resumed, count, Encoder(stop_after))
    except KeyboardInterrupt:
        kept = len(stored(resumed))
        again = Encoder()
        embed(resumed, count, again)
        assert again.calls == sum(-(-min(6, count - 6 * number) // 4) for number in range(kept, -(-count // 6)))
    assert stored(resumed) == stored(alone)

    def never() -> Encoder:
        raise AssertionError("loaded, though nothing is missing")

    embed_shards(iter(texts(count)), resumed, never, rows=count, shard_size=6, batch_size=1)


def test_half_precision_takes_half_the_disk(tmp_path):
    embed(tmp_path, 6, Encoder(), dtype="float16")
    assert np.load(shard_path(tmp_path, 0)).dtype == np.float16


@given(sizes=st.lists(st.integers(1, 7), min_size=1, max_size=5), data=st.data())
def test_rows_are_the_same_in_any_way_of_reading(sizes, data):
    rows = np.random.default_rng(0).normal(size=(sum(sizes), 3)).astype(np.float32)
    shards = Embeddings(np.split(rows, np.cumsum(sizes)[:-1]))
    wanted = normalise(rows, 0)
    assert (len(shards), shards.dim) == (len(rows), 3)
    np.testing.assert_array_equal(shards.load(), wanted)
    np.testing.assert_array_equal(np.concatenate([chunk for _, chunk in shards.chunks()]), wanted)
    picked = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=9)))
    np.testing.assert_array_equal(shards.take(picked), wanted[picked])
    np.testing.assert_allclose(np.linalg.norm(wanted, axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize(("value", "kind"), [(0.0, "zero"), (np.nan, "not finite"), (np.inf, "not finite")])
def test_a_row_without_direction_is_named(value, kind):
    rows = np.ones((5, 2), np.float32)
    rows[3] = value
    shards = Embeddings([rows[:2], rows[2:]])
    with pytest.raises(UserError, match=rf"rows.jsonl line 4: the embedding is {kind} and has no direction"):
        shards.load()
    with pytest.raises(UserError, match="line 4"):
        shards.take(np.array([0, 3]))


def test_a_zero_embedding_is_found_before_its_shard_is_written(tmp_path):
    def zero_at_9(part: list[str]) -> np.ndarray:
        return np.array([[float(text != "text 9")] for text in part], np.float32)

    with pytest.raises(UserError, match=r"rows.jsonl line 10: the embedding is zero"):
        embed_shards(iter(texts(12)), tmp_path, lambda: zero_at_9, rows=12, shard_size=6, batch_size=1)
    assert list(stored(tmp_path)) == ["shard-00000.npy"]


@pytest.mark.parametrize(
    ("which", "text"), [("instruction", "Add.\n1, 2"), ("response", "3"), ("both", "Add.\n1, 2\n3")]
)
def test_what_is_embedded(which, text):
    assert text_of(ROW, which, "line 1") == text


@pytest.mark.parametrize(
    ("row", "which", "missing"), [({}, "response", "output"), ({"output": "a"}, "both", "instruction")]
)
def test_rows_without_the_text(row, which, missing):
    with pytest.raises(UserError, match=f"line 7: no {missing} to embed; variant=paper leaves such rows out"):
        text_of(row, which, "line 7")


def test_texts_are_told_apart_by_their_borders(tmp_path):
    for name, pair in (("a", ("xy", "z")), ("b", ("x", "yz"))):
        (tmp_path / name).write_text("".join(json.dumps({"output": text}) + "\n" for text in pair))
    assert hash_texts(tmp_path / "a", "response") != hash_texts(tmp_path / "b", "response")
    assert list(read_texts(tmp_path / "a", "response")) == ["xy", "z"]


FACTS = {"text": "response", "texts_sha256": "t", "model_id": "m"}


@pytest.fixture
def made(tmp_path) -> Path:
    write_json(tmp_path / MANIFEST, {"rows": 5, "shard_size": 3, **FACTS})
    write_shard(shard_path(tmp_path, 0), np.ones((3, 2), np.float32))
    write_shard(shard_path(tmp_path, 1), np.ones((2, 2), np.float32))
    return tmp_path


def test_embeddings_of_the_same_texts_are_opened(made):
    assert len(open_embeddings(made, FACTS, "embeddings")) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts_sha256": "other"}, "embeddings of other texts; give"),
        ({"model_id": "other"}, "embeddings of other weights (embedding.model) (m, not other)"),
        ({"text": "both"}, "embeddings of other parts of the rows (embedding.text) (response, not both)"),
    ],
)
def test_others_are_refused(made, change, message):
    with pytest.raises(UserError) as raised:
        open_embeddings(made, FACTS | change, "embeddings")
    assert message in str(raised.value)


def test_so_are_incomplete_and_damaged_ones(made):
    write_shard(shard_path(made, 1), np.ones((1, 2), np.float32))
    with pytest.raises(UserError, match="its shards hold 4 rows, not 5"):
        open_embeddings(made, FACTS, "embeddings")
    shard_path(made, 1).unlink()
    with pytest.raises(UserError, match="1 of 2 shards are missing"):
        open_embeddings(made, FACTS, "embeddings")
    (made / MANIFEST).unlink()
    with pytest.raises(UserError, match="no embeddings there"):
        open_embeddings(made, FACTS, "embeddings")
