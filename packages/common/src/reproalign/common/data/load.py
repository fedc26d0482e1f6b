"""From ``data.*`` to the records of both splits, in any view."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from datasets import Dataset

from reproalign.common.config.data import DataConfig, HeldOutConfig, ReadingConfig, SetConfig
from reproalign.common.data.cache import fingerprint_dataset
from reproalign.common.data.holdout import hold_out
from reproalign.common.data.mixing import MixPart, mix_datasets
from reproalign.common.data.splits import has_held_out, read_split
from reproalign.common.data.views import DIALOGUES, PREFERENCES, View
from reproalign.common.errors import UserError

logger = logging.getLogger(__name__)

Part = TypeVar("Part")
Record = TypeVar("Record")
Facts = dict[str, Any]


@dataclass(frozen=True)
class Loaded(Generic[Record]):
    """The records of one data set, and where they came from.

    Attributes:
        train: to train on; none for an evaluation alone.
        evaluation: held out; None if nothing is.
        facts: by split, ``train`` and ``evaluation``.
    """

    train: list[Record]
    evaluation: list[Record] | None
    facts: dict[str, Facts]


@dataclass
class PreferenceData:
    """Records of both splits of all data sets, and where they came from."""

    train: Dataset
    evaluation: Dataset | None
    provenance: dict[str, Facts] = field(default_factory=dict)


def load_set(
    label: str,
    entry: SetConfig,
    data: ReadingConfig,
    view: View[Part, Record],
    *,
    seed: int,
    train: bool = True,
    rejects_dir: Path | None = None,
) -> Loaded[Record]:
    """Read one data set.

    Held-out rows are those of ``eval_path``, or the held-out split on the Hub, or those of a share
    ``data.eval_fraction`` of the prompts; else, for an evaluation alone, all rows. ``fraction`` and ``first`` choose of
    the training rows that are left.

    Args:
        label: its name in ``data.sets``.
        entry: what stands there.
        data: what is said of all data sets.
        view: what is made of its prompts.
        seed: of what is held out.
        train: whether there is a training; otherwise only the held-out records are wanted.
        rejects_dir: where skipped rows are listed.

    Raises:
        UserError: for the first bad row under ``on_error=raise``, and if nothing is left.
    """
    records: dict[bool, list[Record]] = {}
    facts: dict[str, Facts] = {}
    own = has_held_out(label, entry)
    if not (train or own or entry.path or data.eval_fraction):
        raise UserError(
            f"data.sets.{label} has no held-out rows; set data.sets.{label}.eval_path=FILE, its eval_split or "
            "data.eval_fraction"
        )
    options: dict[str, Any] = {"on_error": data.on_error, "rejects_dir": rejects_dir}
    if train or not own:
        records[True], facts["train"] = read_split(label, entry, view, train=True, training=train, **options)
    if own:
        records[False], facts["evaluation"] = read_split(label, entry, view, train=False, **options)
    elif data.eval_fraction:
        records[True], records[False] = hold_out(records[True], data.eval_fraction, seed, view.prompt_of)
        facts["evaluation"] = {**facts["train"], "held_out_of": "train"}
        if not train:
            logger.warning(
                "data.sets.%s: %d rows are measured, the share data.eval_fraction=%s that a training on it holds out; "
                "data.sets.%s.eval_path=FILE measures a whole file",
                *(label, len(records[False]), data.eval_fraction, label),
            )
    elif not train:
        records[False], facts["evaluation"] = records[True], facts["train"]
    evaluation = records[False][: entry.eval_first] if False in records else None
    if not train:
        return Loaded([], evaluation, {"evaluation": facts["evaluation"]})
    kept = records[True][: int(entry.fraction * len(records[True]))] if entry.fraction < 1 else records[True]
    kept = kept[: entry.first]
    if not kept:
        raise UserError(f"data.sets.{label}.fraction={entry.fraction} of {len(records[True])} rows leaves none")
    return Loaded(kept, evaluation, facts)


def check_sets(data: ReadingConfig) -> None:
    """Refuse a run without data.

    Raises:
        UserError: saying how data is given.
    """
    if not data.sets:
        raise UserError(
            "no data set is given; set data.sets.NAME.path=FILE to read a file of your own, or choose one: data=NAME"
        )


def load_preferences(data: DataConfig, *, seed: int, rejects_dir: Path | None = None) -> PreferenceData:
    """Read preference pairs; several data sets are concatenated and shuffled by ``seed``.

    Args:
        data: what to read.
        seed: of what is held out and of the shuffle.
        rejects_dir: where skipped rows are listed.

    Raises:
        UserError: as :func:`load_set` does, and for text and messages in one set.
    """
    return _load(data, PREFERENCES, seed, rejects_dir, max_rows=data.max_rows)


def load_messages(data: DataConfig, *, seed: int, rejects_dir: Path | None = None) -> PreferenceData:
    """Read dialogues for supervised fine-tuning: of pairs the prompt with the preferred response."""
    return _load(data, DIALOGUES, seed, rejects_dir, max_rows=data.max_rows)


def load_evaluation(data: HeldOutConfig, *, seed: int, rejects_dir: Path | None = None) -> PreferenceData:
    """Read the held-out pairs alone, as ``train`` of the result; all rows of a set that has no held-out ones."""
    return _load(data, PREFERENCES, seed, rejects_dir, train=False)


def _load(
    data: HeldOutConfig,
    view: View[Any, Any],
    seed: int,
    rejects_dir: Path | None,
    *,
    train: bool = True,
    max_rows: int | None = None,
) -> PreferenceData:
    check_sets(data)
    parts, provenance = [], {}
    alone = len(data.sets) == 1
    for label, entry in data.sets.items():
        loaded = load_set(label, entry, data, view, seed=seed, train=train, rejects_dir=rejects_dir)
        splits = {"train": (loaded.train, max_rows), "test": (loaded.evaluation, data.max_eval_rows)}
        tables = {
            split: Dataset.from_list(records[: limit if alone else None])  # type: ignore[arg-type]
            for split, (records, limit) in splits.items()
            if records
        }
        parts.append(MixPart(label, 1.0, tables))
        for role, facts in loaded.facts.items():
            table = tables["train" if role == "train" else "test"]
            used = {"rows_used": len(table), "sha256": fingerprint_dataset(table)}
            provenance[role if alone else f"{role}:{label}"] = {**facts, **used}
    _check_forms(parts)
    mixed = mix_datasets(parts, seed=seed, shuffle=not alone)
    evaluation = _head(mixed.get("test"), data.max_eval_rows)
    if not train:
        return PreferenceData(evaluation, None, provenance)
    return PreferenceData(_head(mixed["train"], max_rows), evaluation, provenance)


def _check_forms(parts: list[MixPart]) -> None:
    """Refuse sets of which one has text for its responses and another messages: no column holds both."""
    forms = {part.name: isinstance(rows[0].get("chosen"), str) for part in parts for rows in part.splits.values()}
    texts, dialogues = ([name for name, is_text in forms.items() if is_text is kind] for kind in (True, False))
    if texts and dialogues:
        raise UserError(
            f"data.sets.{texts[0]} has text for prompts and responses and data.sets.{dialogues[0]} messages, and the "
            "two are not mixed; give both in one form"
        )


def _head(dataset: Any, rows: int | None) -> Any:
    return dataset if dataset is None or rows is None else dataset.select(range(min(rows, len(dataset))))
