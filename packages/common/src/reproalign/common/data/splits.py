"""The rows of one split, from a file or the Hub: a record of each, and a list of those that do not fit."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import track

from reproalign.common.config import DataConfig
from reproalign.common.data.reading import Row, local_path, read_hub, read_local
from reproalign.common.data.records import RowError
from reproalign.common.data.sources import Home
from reproalign.common.errors import UserError
from reproalign.common.files import sha256_file, write_text

logger = logging.getLogger(__name__)

Record = TypeVar("Record")


def read_split(
    config: DataConfig,
    source: Home,
    role: str,
    to_record: Callable[[dict[str, Any]], Record],
    rejects_dir: Path | None,
    *,
    part: str = "",
    key: str | None = None,
) -> tuple[list[Record], dict[str, Any]]:
    """Read the rows of a split, from ``data.path`` or the Hub, and make a record of each.

    Args:
        config: where the rows are, and what becomes of bad ones.
        source: its name, and its home on the Hub.
        role: ``train`` or ``evaluation``.
        to_record: raises :class:`~reproalign.common.data.records.RowError` for a row that does not fit.
        rejects_dir: where ``data.on_error=skip`` puts ``rejects-<role><part>.jsonl``.
        part: tells the splits of a mixture apart.
        key: what a file is given by; None: ``data.path`` or ``data.eval_path``.

    Returns:
        The records, and facts: where they came from, rows read and rejected.

    Raises:
        UserError: for the first bad row under ``on_error=raise``, and if no row is usable.
    """
    local = config.path if role == "train" else config.eval_path
    split = config.train_split if role == "train" else config.eval_split
    split = split or (source.splits[0] if role == "train" else source.splits[1])
    key = key or ("data.path" if role == "train" else "data.eval_path")
    if local:
        path = local_path(local, split, key=key)
        rows: Iterable[Row] = read_local(path)
        facts: dict[str, Any] = {
            "path": local,
            "sha256": None if path.is_dir() else sha256_file(path),
        }  # as asked for: `demo:…` is no path
    else:
        name = config.name or source.hub
        if name is None:
            raise UserError(f"data.source={source.name} has no home on the Hub; set {key}=FILE or data.name=DATASET")
        rows, commit = read_hub(name, config.config_name, split, config.revision, data_dir=source.data_dir, key=key)
        facts = {"name": name, "split": split, "revision": config.revision, "commit": commit}
    records, rejects = _to_records(rows, to_record, config.on_error, f"reading {role} rows")
    if rejects:
        _report_rejects(rejects, role, rejects_dir, part)
    if not records:
        raise UserError(f"{local or facts.get('name')}: none of its {len(rejects)} rows is usable")
    facts |= {"source": source.name, "rows_read": len(records) + len(rejects), "rows_rejected": len(rejects)}
    return records, facts


def _to_records(
    rows: Iterable[Row], to_record: Callable[[dict[str, Any]], Record], on_error: str, label: str
) -> tuple[list[Record], list[dict[str, str]]]:
    records: list[Record] = []
    rejects: list[dict[str, str]] = []
    for row in track(rows, description=label, console=Console(stderr=True), transient=True):
        try:
            if row.problem:
                raise RowError(row.problem)
            records.append(to_record(row.values))
        except RowError as error:
            if on_error == "raise":
                raise UserError(
                    f"{row.place}: {error}; fix the row, or set data.on_error=skip to skip such rows"
                ) from error
            rejects.append({"place": row.place, "reason": str(error)})
    return records, rejects


def _report_rejects(rejects: list[dict[str, str]], role: str, folder: Path | None, part: str) -> None:
    where = ""
    if folder is not None:
        path = folder / f"rejects-{role}{part}.jsonl"
        write_text(path, "".join(json.dumps(reject, ensure_ascii=False) + "\n" for reject in rejects))
        where = f", listed in {path}"
    logger.warning("%d bad %s rows were set aside%s; the first: %s", len(rejects), role, where, rejects[0])
