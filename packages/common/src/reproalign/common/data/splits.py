"""The rows of one split, from a file or the Hub, as records; those that do not fit are listed."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from reproalign.common.config.data import RowsConfig, SetConfig
from reproalign.common.console import track
from reproalign.common.data.reading import Row, local_path, read_hub, read_local
from reproalign.common.data.records import Prompt, RowError
from reproalign.common.data.sources import SOURCES, Source, recognise
from reproalign.common.data.views import View
from reproalign.common.errors import UserError
from reproalign.common.files import sha256_file, write_text

logger = logging.getLogger(__name__)

Part = TypeVar("Part")
Record = TypeVar("Record")
FOLDER_SPLITS = ("train", "test")  # prefixes of a folder's file names; used where the source names no split


def source_of(label: str, entry: RowsConfig) -> Source | None:
    """Return the source that ``data.sets.LABEL.source`` names; None if it is to be recognised.

    Raises:
        UserError: for an unknown one, and where nothing says what is to be read.
    """
    key = f"data.sets.{label}"
    if entry.source is None:
        if not (entry.path or entry.name or getattr(entry, "eval_path", None)):
            raise UserError(
                f"{key} says nowhere what is to be read; set {key}.path=FILE, {key}.name=HUB_DATASET or {key}.source"
            )
        return None
    return SOURCES[entry.source]


def has_held_out(label: str, entry: SetConfig) -> bool:
    """Say whether a data set has held-out rows of its own: a file, or a split on the Hub."""
    source = source_of(label, entry)
    own = source is not None and source.hub is not None and source.splits[1] != "" and entry.name is None
    return bool(entry.eval_path) or (not entry.path and bool(entry.eval_split or own))


def open_rows(label: str, entry: RowsConfig, *, train: bool = True) -> tuple[Iterator[Row], Source, dict[str, Any]]:
    """Return the rows of a split, how they are read, and where they come from; ``rows_read`` grows while they are.

    Args:
        label: the data set's name in ``data.sets``.
        entry: what stands there.
        train: the training split, otherwise the held-out one.

    Raises:
        UserError: if they cannot be read, or the first row is of no known source.
    """
    source = source_of(label, entry)
    path = entry.path if train else getattr(entry, "eval_path", None)
    split = entry.split if train else getattr(entry, "eval_split", None)
    own = (source.splits[0] if train else source.splits[1]) if source else ""
    split = split or own or FOLDER_SPLITS[not train]
    key = f"data.sets.{label}.{'path' if train else 'eval_path'}"
    if path:
        file = local_path(path, split, key=key)
        rows = read_local(file)
        # as asked for: `demo:…` is no path
        facts: dict[str, Any] = {"path": path, "sha256": None if file.is_dir() else sha256_file(file)}
    else:
        name = entry.name or (source.hub if source else None)
        if name is None:
            raise UserError(
                f"data.sets.{label}.source={entry.source} has no home on the Hub; set {key}=FILE or "
                f"data.sets.{label}.name=HUB_DATASET"
            )
        at_home = source is not None and entry.name is None
        revision = entry.revision or (source.revision if source and at_home else None)
        folder = source.data_dir if source and at_home else None
        rows, commit = read_hub(name, entry.config_name, split, revision, data_dir=folder, key=key)
        facts = {"name": name, "split": split, "revision": revision, "commit": commit}
    if source is None:
        source, rows = _recognised(label, rows)
    facts |= {"source": source.name, "rows_read": 0}
    rows = _counted(rows, facts)
    return (source.gather(rows) if source.gather else rows), source, facts


def read_split(
    label: str,
    entry: SetConfig,
    view: View[Part, Record],
    *,
    on_error: str,
    train: bool = True,
    training: bool | None = None,
    rejects_dir: Path | None = None,
) -> tuple[list[Record], dict[str, Any]]:
    """Read the rows of a split and make the records of ``view`` of them.

    Args:
        label: the data set's name in ``data.sets``.
        entry: what stands there.
        view: what is made of a row.
        on_error: ``raise``, or ``skip`` rows that do not fit.
        train: the training split, otherwise the held-out one.
        training: whether its records are trained on; None: those of the training split are.
        rejects_dir: where skipped rows are listed, in ``rejects-<train|evaluation>-<label>.jsonl``.

    Returns:
        The records, and facts: where they came from, how many rows were read, rejected, and of no use (equal scores).

    Raises:
        UserError: for the first bad row under ``raise``, and if no row is usable.
    """
    rows, source, facts = open_rows(label, entry, train=train)
    training = train if training is None else training
    role = "train" if training else "evaluation"
    if source.evaluation_only and training:
        raise UserError(f"{source.name} is for evaluation only; train on another data set")
    parts: list[Part] = []
    rejects: list[dict[str, str]] = []
    differing = unused = 0
    forms: set[bool] = set()
    for row in track(rows, f"reading {label}, {role}"):
        try:
            prompts = _prompts(row, source, forms)
            found = [part for prompt in prompts for part in view.parts(prompt, source)]
        except RowError as error:
            if on_error == "raise":
                raise UserError(
                    f"{row.place}: {error}; fix the row, or set data.on_error=skip to skip such rows"
                ) from error
            rejects.append({"place": row.place, "reason": str(error)})
            continue
        parts += found
        unused += not found
        differing += any(prompt.extras.get("prompts_differ", False) for prompt in prompts)
    if rejects:
        _report_rejects(rejects, f"{role}-{label}", rejects_dir)
    if differing:
        logger.warning(
            "%d %s rows have different prompts before chosen and rejected; chosen's is used", differing, role
        )
    read = facts["rows_read"]
    if unused:
        logger.warning(
            "%d of %d %s rows of %s are of no use: equal scores, or no response", *(unused, read), *(role, label)
        )
    if not parts and len(rejects) == read:
        raise UserError(f"{facts.get('path') or facts.get('name')}: none of its {read} rows is usable")
    records = view.collect(parts, source, training)
    if not records:
        raise UserError(f"data.sets.{label}: its {read} {role} rows make nothing to use; give more rows")
    return records, {**facts, "rows_rejected": len(rejects), "rows_unused": unused}


def _counted(rows: Iterable[Row], facts: dict[str, Any]) -> Iterator[Row]:
    for row in rows:
        facts["rows_read"] += 1
        yield row


def _prompts(row: Row, source: Source, forms: set[bool]) -> list[Prompt]:
    """Return the prompts of a row, which have one of ``forms`` (text or not) if there is one already."""
    if row.problem:
        raise RowError(row.problem)
    prompts = source.read(row.values)
    forms.update([isinstance(prompts[0].messages, str)] if prompts and not forms else [])
    if any(isinstance(prompt.messages, str) not in forms for prompt in prompts):
        raise RowError("text and messages are mixed in one file; use one form")
    return prompts


def _recognised(label: str, rows: Iterable[Row]) -> tuple[Source, Iterator[Row]]:
    rows, unreadable = iter(rows), []
    for row in rows:
        unreadable.append(row)
        if row.problem is None:
            found = recognise(row.values)
            if found is None:
                raise UserError(
                    f"{row.place}: columns {', '.join(sorted(row.values)) or 'none'} are those of no known source; set "
                    f"data.sets.{label}.source to one of {', '.join(SOURCES)}"
                )
            return found, chain(unreadable, rows)
    first = unreadable[0]
    raise UserError(
        f"{first.place}: {first.problem}; none of the {len(unreadable)} rows of data.sets.{label} can be read"
    )


def _report_rejects(rejects: list[dict[str, str]], name: str, folder: Path | None) -> None:
    where = ""
    if folder is not None:
        path = folder / f"rejects-{name}.jsonl"
        write_text(path, "".join(json.dumps(reject, ensure_ascii=False) + "\n" for reject in rejects))
        where = f", listed in {path}"
    logger.warning("%d bad rows of %s were skipped%s; the first: %s", len(rejects), name, where, rejects[0])
