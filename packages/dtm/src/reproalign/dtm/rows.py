"""Instruction rows, their labels, and which rows a model is trained on, in which order."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reproalign.common.data.reading import Row, local_path, read_local
from reproalign.common.errors import UserError, counted
from reproalign.common.files import sha256_file, sha256_json
from reproalign.common.records.handed_on import intact

if TYPE_CHECKING:
    from datasets import Dataset

COLUMNS = ("instruction", "input", "output", "source")
# In the folder of `dtm disperse`.
ROWS, LABELS, HELD_OUT, DISPERSAL = "rows.jsonl", "labels.json", "held_out.jsonl", "dispersal.json"
LABEL_LIMIT = 2**63  # labels are kept as int64


@dataclass(frozen=True)
class Selection:
    """Which files are read, and which clusters of them.

    Attributes:
        rows: files of rows, in order.
        labels: their label files, or none.
        clusters: ids; None: all rows.
    """

    rows: list[str]
    labels: list[str]
    clusters: list[int] | None


def parse_selection(rows: Sequence[str], labels: Sequence[str], cluster: str | int | None) -> Selection:
    """Read the notations of the release: ``a.jsonl,b.jsonl`` for files, ``0+2`` for clusters.

    Args:
        rows: files; one entry may hold several, joined by commas.
        labels: likewise.
        cluster: ids joined by ``+``; None: no selection, and no labels needed.

    Raises:
        UserError: for no rows, a number of label files that is not that of the files of rows, a selection without
            labels, or what is no id.
    """
    selection = Selection(_split(rows), _split(labels), parse_clusters(cluster))
    if not selection.rows:
        raise UserError("no rows are given; set dispersal=FOLDER or rows=[FILE]")
    if selection.labels and len(selection.labels) != len(selection.rows):
        raise UserError(
            f"labels: {counted(len(selection.labels), 'file')} for {counted(len(selection.rows), 'file')} of rows; "
            "each needs its own"
        )
    if selection.clusters is not None and not selection.labels:
        raise UserError(f"cluster={cluster} needs labels; set labels=[FILE] or dispersal=FOLDER")
    return selection


def parse_clusters(cluster: str | int | None) -> list[int] | None:
    """Return the ids in ``2`` or ``0+2``; none in an empty text, which selects nothing; None for None.

    Raises:
        UserError: for what is no whole number.
    """
    if cluster is None:
        return None
    if cluster == "":
        return []
    try:
        return [int(part) for part in str(cluster).split("+")]
    except ValueError as error:
        raise UserError(f"cluster={cluster}: give an id, e.g. cluster=2, or several, e.g. cluster=0+2") from error


def read_rows(paths: Sequence[str | Path], *, key: str = "rows", cache_dir: str | None = None) -> Dataset:
    """Read files of instruction rows into one memory-mapped table with the columns :data:`COLUMNS`.

    Null stands where a row has nothing: an empty object ``{}``, which the release writes for a dialogue that does not
    fit, is a row of nulls (see :func:`is_placeholder`), so that labels keep their places.

    Args:
        paths: ``.jsonl``, ``.json``, ``.jsonl.gz`` or ``.parquet``; their rows are put one after the other.
        key: what the user typed them for.
        cache_dir: see :func:`reproalign.common.data.cache.cache_folder`.

    Raises:
        UserError: for a file that cannot be read, or the first row that is no instruction row, with file and line.
    """
    from datasets import Dataset, Features, Value
    from datasets.exceptions import DatasetGenerationError

    from reproalign.common.data.cache import cache_folder, cached

    files = [local_path(str(path), key=key) for path in paths]
    features = Features({name: Value("string") for name in COLUMNS})
    with tempfile.TemporaryDirectory(prefix="reproalign-") as temporary:

        def build() -> Dataset:
            try:
                return Dataset.from_generator(  # type: ignore[no-any-return]
                    _instruction_rows, gen_kwargs={"files": files}, features=features, cache_dir=temporary
                )
            except DatasetGenerationError as error:
                raise (error.__cause__ if isinstance(error.__cause__, UserError) else error) from None

        return cached(cache_folder(cache_dir), ["dtm rows", *map(digest, files)], build)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file of rows, or of a ``save_to_disk`` folder: over names and contents of its files."""
    if path.is_dir():
        return sha256_json([[file.name, sha256_file(file)] for file in sorted(path.rglob("*")) if file.is_file()])
    return sha256_file(path)


def is_placeholder(row: dict[str, Any]) -> bool:
    """Say whether a row is one of nulls, which nothing can be trained on."""
    return row["instruction"] is None or row["output"] is None


def read_labels(path: str | Path, count: int | None = None) -> NDArray[np.int64]:
    """Read a label file: a JSON array with the cluster of each row, ``[3, 0, 0, 2]``.

    Args:
        path: of the file.
        count: of the rows it belongs to; None: not known.

    Raises:
        UserError: for a file that cannot be read, is no array, has another length, or labels that are not whole numbers
            from 0 on.
    """
    try:
        content = json.loads(intact(Path(path).expanduser()).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"labels: {path}: cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:
        raise UserError(f"labels: {path}: not valid JSON ({error}); a JSON array of cluster ids is needed") from error
    if not isinstance(content, list):
        raise UserError(f"labels: {path}: a JSON array of cluster ids is needed, one for each row")
    if count is not None:
        check_length(content, count, str(path))
    for index, label in enumerate(content):
        if type(label) is not int or not 0 <= label < LABEL_LIMIT:
            raise UserError(
                f"labels: {path}: label {index} is {json.dumps(label)}; cluster ids are whole numbers from 0 on, below "
                "2^63"
            )
    return np.array(content, dtype=np.int64)


def check_length(values: Sequence[Any], count: int, place: str, *, key: str = "labels", what: str = "labels") -> None:
    """Refuse ``values``, called ``what`` and read from ``place``, that do not belong to ``count`` rows.

    Raises:
        UserError: naming the place and both numbers.
    """
    if len(values) != count:
        raise UserError(f"{key}: {place} has {len(values)} {what} for {count} rows; it belongs to other rows")


def check_clusters(labels: NDArray[np.int64], clusters: Sequence[int] | None, *, key: str = "cluster") -> None:
    """Refuse clusters that no row has.

    Raises:
        UserError: naming those there are.
    """
    if clusters is None:
        return
    there = np.unique(labels).tolist()
    missing = [cluster for cluster in clusters if cluster not in there]
    if missing or not clusters:
        known = ", ".join(map(str, there))
        raise UserError(
            f"{key}={'+'.join(map(str, clusters))}: no row has {missing or 'such an id'}; there are {known}"
        )


def selected_order(labels: NDArray[Any], clusters: Sequence[int] | None, seed: int, ratio: float) -> NDArray[np.int64]:
    """Return the indices of the rows that are trained on, in the release's order.

    Rows of ``clusters`` (None: all), shuffled by ``numpy.random.default_rng(seed).permutation``, of which the first
    ⌊n · ratio⌋ are kept, maybe none.

    Args:
        labels: of all rows, those of several files one after the other; one that is no number is in no cluster.
        clusters: ids; None: all rows.
        seed: of the shuffle.
        ratio: in (0, 1].
    """
    picked = np.arange(len(labels)) if clusters is None else np.flatnonzero(np.isin(labels, clusters))
    shuffled = picked[np.random.default_rng(seed).permutation(len(picked))]
    return shuffled if ratio == 1.0 else shuffled[: int(len(picked) * ratio)]


def _split(entries: Sequence[str]) -> list[str]:
    return [part for entry in entries for part in ([entry] if Path(entry).exists() else entry.split(","))]


def _instruction_rows(files: Sequence[Path]) -> Iterator[dict[str, str | None]]:
    for file in files:
        for row in read_local(file):
            yield _instruction_row(row)


def _instruction_row(row: Row) -> dict[str, str | None]:
    if row.problem:
        raise UserError(f"{row.place}: {row.problem}")
    if row.values and not {"instruction", "output"} <= row.values.keys():
        hint = "; a dialogue becomes one by 'dtm disperse'" if "messages" in row.values else ""
        raise UserError(f"{row.place}: an instruction row needs 'instruction' and 'output'{hint}")
    values = {name: row.values.get(name) for name in COLUMNS}
    for name, value in values.items():
        if value is not None and not isinstance(value, str):
            raise UserError(f"{row.place}: {name} is {value!r}; text is needed")
    return values
