"""From a :class:`DataConfig` to the records of both splits."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset

from reproalign.common.config import DataConfig
from reproalign.common.data.cache import fingerprint_dataset
from reproalign.common.data.mixing import MixPart, mix_datasets
from reproalign.common.data.records import Message, RowError, Text, messages
from reproalign.common.data.sources import SOURCES, Source
from reproalign.common.data.splits import read_split
from reproalign.common.errors import UserError, choose

logger = logging.getLogger(__name__)


@dataclass
class PreferenceData:
    """Records of both splits, and where they came from."""

    train: Dataset
    evaluation: Dataset | None
    provenance: dict[str, dict[str, Any]] = field(default_factory=dict)


def load_preferences(config: DataConfig, *, rejects_dir: Path | None = None) -> PreferenceData:
    """Read, check and select the records of both splits.

    Args:
        config: what to read.
        rejects_dir: where ``data.on_error=skip`` puts ``rejects-<split>.jsonl``.

    Raises:
        UserError: for the first bad row (with file and line) under ``on_error=raise``, and for unusable settings.
    """
    return _load(config, SOURCES[choose("data.source", config.source, SOURCES)], rejects_dir)


def load_evaluation(config: DataConfig, *, rejects_dir: Path | None = None) -> tuple[Dataset, dict[str, Any]]:
    """Read the records of the evaluation split alone (of ``data.path`` if there is no ``data.eval_path``)."""
    source = SOURCES[choose("data.source", config.source, SOURCES)]
    if config.path and not config.eval_path:
        dataset, facts = _load_split(config, source, "train", rejects_dir)
    else:
        dataset, facts = _load_split(config, source, "evaluation", rejects_dir)
    dataset = _head(dataset, config.max_eval_rows)
    return dataset, {**facts, "rows_used": len(dataset), "sha256": fingerprint_dataset(dataset)}


def load_messages(config: DataConfig, *, rejects_dir: Path | None = None) -> PreferenceData:
    """Read dialogues for supervised fine-tuning: the ``messages`` column, else prompt and chosen of the pairs."""
    if config.source != "messages":
        data = load_preferences(config, rejects_dir=rejects_dir)
        return PreferenceData(
            _to_messages(data.train),
            None if data.evaluation is None else _to_messages(data.evaluation),
            data.provenance,
        )
    source = Source("messages", None, ("train", "test"), _message_record)  # type: ignore[arg-type]
    return _load(config, source, rejects_dir)


def _load(config: DataConfig, source: Source, rejects_dir: Path | None) -> PreferenceData:
    choose("data.on_error", config.on_error, ["raise", "skip"])
    if config.mix:
        return _load_mixture(config, source, rejects_dir)
    train, facts = _load_split(config, source, "train", rejects_dir)
    provenance = {"train": facts}
    train = _head(train, int(config.fraction * len(train)) if config.fraction < 1 else None)
    evaluation: Dataset | None = None
    if config.eval_path or (config.eval_split and not config.path):
        evaluation, provenance["evaluation"] = _load_split(config, source, "evaluation", rejects_dir)
    elif config.eval_fraction:
        train, evaluation = _hold_out(train, config.eval_fraction)
    train, evaluation = _head(train, config.max_rows), _head(evaluation, config.max_eval_rows)
    for name, dataset in (("train", train), ("evaluation", evaluation)):
        if dataset is not None:
            provenance.setdefault(name, {"held_out_of": "train"})
            provenance[name] |= {"rows_used": len(dataset), "sha256": fingerprint_dataset(dataset)}
    return PreferenceData(train, evaluation, provenance)


def _load_mixture(config: DataConfig, source: Source, rejects_dir: Path | None) -> PreferenceData:
    parts, provenance = [], {}
    for number, (name, fraction) in enumerate((config.mix or {}).items(), start=1):
        single = DataConfig(**{**config.__dict__, "mix": None, "name": name, "path": None, "eval_path": None})
        splits = {}
        for role, split in (("train", config.train_split), ("evaluation", config.eval_split)):
            if split:
                dataset, facts = _load_split(single, source, role, rejects_dir, f"-{number}")
                splits["train" if role == "train" else "test"] = dataset
                provenance[f"{role}:{name}"] = facts | {"sha256": fingerprint_dataset(dataset)}
        parts.append(MixPart(name, fraction, splits))
    mixed = mix_datasets(parts)
    if not mixed.get("train"):
        raise UserError("data.mix leaves no training rows; set data.train_split and larger shares")
    train, evaluation = mixed["train"], mixed.get("test")
    if evaluation is None and config.eval_fraction:
        train, evaluation = _hold_out(train, config.eval_fraction)
    return PreferenceData(_head(train, config.max_rows), _head(evaluation, config.max_eval_rows), provenance)


def _load_split(
    config: DataConfig, source: Source, role: str, rejects_dir: Path | None, part: str = ""
) -> tuple[Dataset, dict[str, Any]]:
    differing = 0
    kind: type | None = None

    def to_record(values: dict[str, Any]) -> Any:
        nonlocal differing, kind
        record: Any = source.to_record(values)
        kind = kind or type(record.get("prompt"))
        if type(record.get("prompt")) is not kind:
            raise RowError("text and messages are mixed in one file; use one form")
        differing += _prompts_differ(values)
        return record

    records, facts = read_split(config, source, role, to_record, rejects_dir, part=part)
    if differing:
        logger.warning(
            "%d %s rows have different prompts before chosen and rejected; chosen's is used", differing, role
        )
    return Dataset.from_list(records), facts


def _hold_out(dataset: Dataset, fraction: float) -> tuple[Dataset, Dataset]:
    if not 0 < fraction < 1:
        raise UserError(f"data.eval_fraction={fraction} must be between 0 and 1")
    held = math.ceil(fraction * len(dataset))
    if held >= len(dataset):
        raise UserError(f"data.eval_fraction={fraction} of {len(dataset)} rows leaves none to train on")
    parts = dataset.train_test_split(test_size=held, seed=42)
    return parts["train"], parts["test"]


def _prompts_differ(values: dict[str, Any]) -> bool:
    chosen, rejected = values.get("chosen"), values.get("rejected")
    return isinstance(chosen, list) and isinstance(rejected, list) and chosen[:-1] != rejected[:-1]


def _message_record(row: dict[str, Any]) -> dict[str, list[Message]]:
    return {"messages": messages(row, "messages")}


def _to_messages(dataset: Dataset) -> Dataset:
    def build(record: Mapping[str, Any]) -> dict[str, Text]:
        if isinstance(record["prompt"], str):
            turns = [("user", record["prompt"]), ("assistant", str(record["chosen"]))]
            return {"messages": [{"role": role, "content": content} for role, content in turns]}
        return {"messages": [*record["prompt"], *record["chosen"]]}  # type: ignore[list-item]

    return dataset.map(build, remove_columns=dataset.column_names)


def _head(dataset: Any, rows: int | None) -> Any:
    if rows is not None and rows < 1:
        raise UserError("no rows are left; raise data.fraction, data.max_rows or data.max_eval_rows")
    return dataset if dataset is None or rows is None else dataset.select(range(min(rows, len(dataset))))
