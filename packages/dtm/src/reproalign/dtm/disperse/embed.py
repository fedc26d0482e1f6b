"""From rows to embeddings: each process embeds its share of the shards, and a resumed run those that are missing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reproalign.common.console import counting
from reproalign.common.errors import UserError
from reproalign.common.integrity import is_whole
from reproalign.dtm.disperse.embeddings import normalise, shard_path, write_shard

Encode = Callable[[list[str]], NDArray[Any]]  # texts -> (texts, dim)
TEXTS = ("instruction", "response", "both")
PIECES = 4  # batches encoded at a time: sorted by length among themselves, and a step of the progress bar


def text_of(row: dict[str, Any], which: str, place: str) -> str:
    """Return the text of a row that is embedded.

    Args:
        row: an instruction row.
        which: ``instruction`` (an input below it), ``response``, or ``both``, a newline between.
        place: of the row, for the error.

    Raises:
        UserError: for a row without that text, such as the release's empty objects.
    """
    wanted = {"instruction": ("instruction",), "response": ("output",), "both": ("instruction", "output")}[which]
    for name in wanted:
        if not isinstance(row.get(name), str):
            raise UserError(
                f"{place}: no {name} to embed; variant=paper leaves such rows out, or choose another embedding.text"
            )
    question = "\n".join(part for part in (row.get("instruction"), row.get("input")) if part)
    answer = str(row.get("output"))
    return {"instruction": question, "response": answer, "both": f"{question}\n{answer}"}[which]


def read_texts(path: Path, which: str) -> Iterator[str]:
    """Yield the text of every row of ``rows.jsonl`` that is embedded."""
    with path.open(encoding="utf-8", newline="\n") as stream:
        for number, line in enumerate(stream, start=1):
            yield text_of(json.loads(line), which, f"{path.name} line {number}")


def hash_texts(path: Path, which: str) -> str:
    """Return the SHA-256 of the texts, in order."""
    total = hashlib.sha256()
    for text in read_texts(path, which):
        encoded = text.encode()
        total.update(len(encoded).to_bytes(8, "big") + encoded)
    return total.hexdigest()


def share(shards: int, rank: int, processes: int) -> list[int]:
    """Return the shards of a process: every ``processes``-th one, so that any number of processes embeds the same."""
    return list(range(rank, shards, processes))


def embed_shards(
    texts: Iterator[str],
    folder: Path,
    load: Callable[[], Encode],
    *,
    rows: int,
    shard_size: int,
    batch_size: int,
    dtype: str = "float32",
    rank: int = 0,
    processes: int = 1,
) -> None:
    """Write the shards of this process that are not there yet.

    A shard's texts are given to the model in the same batches whoever embeds it and whenever, so that its bytes depend
    neither on the number of processes nor on interruptions.

    Args:
        texts: of all rows, in order.
        folder: of the shards.
        load: makes the encoder; called only if something is missing.
        rows: how many there are.
        shard_size: rows per shard.
        batch_size: texts per forward.
        dtype: of the files, ``float32`` or ``float16``.
        rank: this process.
        processes: how many there are.

    Raises:
        UserError: for an embedding that is zero or not finite, naming the row; and for a full disk.
    """
    mine = share(-(-rows // shard_size), rank, processes)
    missing = [number for number in mine if not is_whole(shard_path(folder, number))]
    if not missing:
        return
    encode = load()
    sizes = {number: min(shard_size, rows - number * shard_size) for number in mine}
    done = sum(size for number, size in sizes.items() if number not in missing)
    with counting("embedding rows", sum(sizes.values()), done=done, shown=rank == 0) as advance:
        at = 0
        for number in missing:
            part = list(islice(texts, number * shard_size - at, (number * shard_size - at) + sizes[number]))
            at = number * shard_size + sizes[number]
            pieces = []
            for start in range(0, len(part), PIECES * batch_size):
                piece = encode(part[start : start + PIECES * batch_size])
                normalise(piece, number * shard_size + start)  # refuses what has no direction
                pieces.append(piece.astype(dtype))
                advance(len(piece))
            write_shard(shard_path(folder, number), np.concatenate(pieces))
