"""Sentence embeddings on disk: one ``.npy`` file per shard of rows, and what they are embeddings of."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from reproalign.common.errors import UserError
from reproalign.common.files import atomic_path, space_needed
from reproalign.common.manifests import seal
from reproalign.common.records.handed_on import as_written

FOLDER, MANIFEST = "embeddings", "embeddings.json"
WHAT = {"text": "parts of the rows (embedding.text)", "texts_sha256": "texts", "model_id": "weights (embedding.model)"}
Vectors = Float[NDArray[np.float32], "rows dim"]


class Embeddings:
    """The embeddings of n rows, read shard by shard and normalised: x_i / ‖x_i‖ in float32.

    No shard is kept, so that a pass over a million rows takes the memory of one shard.

    Args:
        shards: arrays, or files of ``numpy.save``, one after another.
    """

    def __init__(self, shards: Sequence[NDArray[Any] | Path]) -> None:
        self._shards = list(shards)
        shapes = [self._read(number, mapped=True).shape for number in range(len(shards))]
        self._starts = np.cumsum([0, *(shape[0] for shape in shapes)])
        self.dim = int(shapes[0][1])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def chunks(self) -> Iterator[tuple[int, Vectors]]:
        """Yield the index of each shard's first row, and its normalised rows.

        Raises:
            UserError: for a row whose embedding is zero or not finite, which has no direction.
        """
        for number, start in enumerate(self._starts[:-1].tolist()):
            yield start, normalise(self._read(number), start)

    def take(self, rows: Int[NDArray[np.int64], " taken"]) -> Float[NDArray[np.float32], "taken dim"]:
        """Return some rows, normalised, in the order of ``rows``."""
        taken = np.empty((len(rows), self.dim), np.float32)
        places = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(places).tolist():
            here = np.flatnonzero(places == number)
            taken[here] = self._read(number, mapped=True)[rows[here] - self._starts[number]]
        return normalise(taken, rows)

    def load(self) -> Vectors:
        """Return all rows, normalised: the one copy that algorithms on all rows need."""
        loaded = np.empty((len(self), self.dim), np.float32)
        for start, chunk in self.chunks():
            loaded[start : start + len(chunk)] = chunk
        return loaded

    def _read(self, number: int, *, mapped: bool = False) -> NDArray[Any]:
        shard = self._shards[number]
        # Pages of a mapped file count as the process's memory as they are touched; a whole shard is better read.
        return np.load(shard, mmap_mode="r" if mapped else None) if isinstance(shard, Path) else shard


def normalise(rows: NDArray[Any], places: NDArray[np.int64] | int) -> Vectors:
    """Divide each row by its Euclidean length, in float32.

    Args:
        rows: embeddings.
        places: index of the first row, or of every row, for the error.

    Raises:
        UserError: for a length that is zero or not finite.
    """
    vectors = rows.astype(np.float32, copy=False)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
    if len(bad):
        row = (places + bad[0]) if isinstance(places, int) else places[bad[0]]
        kind = "zero" if lengths[bad[0]] == 0 else "not finite"
        raise UserError(
            f"rows.jsonl line {row + 1}: the embedding is {kind} and has no direction; leave the row out of the data, "
            "or choose another embedding.model or embedding.text"
        )
    unit: Vectors = vectors / lengths
    return unit


def shard_path(folder: Path, number: int) -> Path:
    """Return the file of a shard."""
    return folder / f"shard-{number:05}.npy"


def write_shard(path: Path, rows: NDArray[Any]) -> None:
    """Write a shard whole or not at all, and seal it."""
    with space_needed(f"{path.parent}"), atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, rows)
    seal(path)


def open_embeddings(folder: Path, expected: dict[str, Any], key: str) -> Embeddings:
    """Open the embeddings in ``folder`` if they are what is needed.

    Args:
        folder: with the manifest and all shards.
        expected: facts that the manifest must hold: of the texts, and of the model.
        key: the option that named the folder.

    Raises:
        UserError: if there are none, they are not complete, or are others.
    """
    manifest = read_manifest(folder, key)
    check_manifest(folder, manifest, expected, key)
    count = -(-manifest["rows"] // manifest["shard_size"])
    missing = [number for number in range(count) if not shard_path(folder, number).is_file()]
    if missing:
        raise UserError(
            f"{key}={folder}: {len(missing)} of {count} shards are missing; let the run that makes them finish first"
        )
    found = Embeddings([as_written(shard_path(folder, number)) for number in range(count)])
    if len(found) != manifest["rows"]:
        raise UserError(f"{key}={folder}: its shards hold {len(found)} rows, not {manifest['rows']}; make them again")
    return found


def check_manifest(folder: Path, manifest: dict[str, Any], expected: dict[str, Any], key: str) -> None:
    """Refuse embeddings of other texts, or by another model.

    Raises:
        UserError: naming the first fact that differs.
    """
    for fact, value in expected.items():
        if manifest.get(fact) != value:
            found = "" if fact == "texts_sha256" else f" ({str(manifest.get(fact))[:60]}, not {str(value)[:60]})"
            raise UserError(
                f"{key}={folder}: these are embeddings of other {WHAT[fact]}{found}; give the options of the run that "
                "made them, or leave them out and let the rows be embedded"
            )


def read_manifest(folder: Path, key: str) -> dict[str, Any]:
    """Read what the embeddings in ``folder`` are of.

    Raises:
        UserError: if there are none.
    """
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{key}={folder}: no embeddings there ({MANIFEST} is missing or unreadable); give the folder "
            f"'{FOLDER}' of a run of 'dtm disperse method=kmeans'"
        ) from error
    if not isinstance(content, dict) or not {"rows", "shard_size"} <= content.keys():
        raise UserError(f"{key}={folder}: {MANIFEST} is not that of embeddings")
    return content
