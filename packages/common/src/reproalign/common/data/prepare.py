"""From a :class:`DataConfig` to data sets ready for the trainers.

``load_preferences`` (rows -> records) -> ``render_pairs`` (records -> text) -> the paper's own rule ->
``tokenize_pairs`` (text -> ids). Whole dialogues for reward models: :mod:`reproalign.common.reward.dialogues`.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from datasets import Dataset, Features, Value
from rich.progress import track
from transformers import PreTrainedTokenizerBase

from reproalign.common.config import DataConfig
from reproalign.common.console import note_console
from reproalign.common.data.cache import fingerprint_dataset, fingerprint_tokenizer, map_cached
from reproalign.common.data.mixing import MixPart, mix_datasets
from reproalign.common.data.reading import Row, local_path, read_hub, read_local
from reproalign.common.data.records import Message, RowError, Text, messages
from reproalign.common.data.sources import SOURCES, Home, Source
from reproalign.common.data.templates import render, render_completion, set_template, with_system
from reproalign.common.data.tokenize import Encoder, Rules, begins_with_bos, check_lengths, join_row
from reproalign.common.errors import UserError, choose
from reproalign.common.files import sha256_file, write_text

logger = logging.getLogger(__name__)

Record = TypeVar("Record")
MAX_MODEL_LENGTH = 2048  # given to tokenizers that claim an absurd one, as the alignment-handbook does


@dataclass
class PreferenceData:
    """Records of both splits, and where they came from."""

    train: Dataset
    evaluation: Dataset | None
    provenance: dict[str, dict[str, Any]] = field(default_factory=dict)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, *, chat_template: str | None) -> None:
    """Set a tokenizer up for preference data: pad token (EOS if it has none), length, chat template.

    Raises:
        UserError: if it has no EOS token, or no chat template and none is given.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of '{tokenizer.name_or_path}' has no EOS token; set one in its tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.model_max_length > 100_000:
        tokenizer.model_max_length = MAX_MODEL_LENGTH
    set_template(tokenizer, chat_template)


def load_preferences(config: DataConfig, *, rejects_dir: Path | None = None) -> PreferenceData:
    """Read, check and select the records of both splits.

    Args:
        config: what to read.
        rejects_dir: where ``data.on_error=skip`` puts ``rejects-<split>.jsonl``.

    Raises:
        UserError: for the first bad row (with file and line) under ``on_error=raise``, and for unusable settings.
    """
    return _load(config, SOURCES[choose("data.source", config.source, SOURCES)], rejects_dir)


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


def render_pairs(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    *,
    sides: Sequence[str] = ("chosen", "rejected"),
    generation: bool = False,
) -> Dataset:
    """Render records as text with the chat template: ``prompt`` (all turns before), and the responses in ``sides``.

    With ``generation`` the header of the assistant's turn ends the prompt, else it begins the response.

    Under ``boundary=released`` responses are rendered on their own, as the release does; else as what the whole
    dialogue has beyond the prompt. Text records stay as they are.
    """
    alone = config.boundary == "released"

    def build(record: Mapping[str, Any]) -> dict[str, str]:
        if isinstance(record["prompt"], str):
            return {name: record[name] for name in ("prompt", *sides)}
        prompt = with_system(record["prompt"], config.system_message, str(tokenizer.chat_template))
        return {
            "prompt": render(tokenizer, prompt, generation=generation),
            **{
                name: render_completion(tokenizer, prompt, record[name], alone=alone, generation=generation)
                for name in sides
            },
        }

    features = text_features(dataset, sides)
    return _map(dataset, tokenizer, config, "render_pairs", build, features, options=[*sides, generation])


def render_messages(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> Dataset:
    """Render whole dialogues (``messages``) as ``text`` with the chat template, after ``data.system_message``."""

    def build(record: Mapping[str, Any]) -> dict[str, str]:
        dialogue = with_system(record["messages"], config.system_message, str(tokenizer.chat_template))
        return {"text": render(tokenizer, dialogue)}

    features = Features({"text": Value("string")})
    return _map(
        dataset.select_columns("messages"), tokenizer, config, "render_messages", build, features, drop="messages"
    )


def tokenize_pairs(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    *,
    sides: Sequence[tuple[str, ...]] = (("chosen", "rejected"),),
) -> Dataset:
    """Tokenise rendered pairs (see :mod:`~reproalign.common.data.tokenize`); numeric columns are kept.

    Adds ``chosen_input_ids``, ``chosen_prompt_length``, the same for rejected, and ``length`` (the longest side).
    Sides in one tuple keep the same part of a long prompt; unpaired responses stand in tuples of their own. A column
    ``truncation`` overrules ``data.truncation`` row by row. ``overlong`` says what becomes of rows that exceed
    ``max_length``: truncate, drop, or error.

    Raises:
        UserError: for ``overlong=error`` and such a pair, or lengths that leave no room for a response.
    """
    check_lengths(config.max_length, config.max_prompt_length)
    choose("data.overlong", config.overlong, ["truncate", "drop", "error"])
    every = {
        truncation: Rules(
            bos_id=tokenizer.bos_token_id,
            eos_id=tokenizer.eos_token_id,
            max_length=config.max_length,
            max_prompt_length=config.max_prompt_length,
            truncation=truncation,
            boundary=config.boundary,
            special_tokens=config.special_tokens,
            add_bos=begins_with_bos(tokenizer),
        )
        for truncation in {config.truncation, *(dataset["truncation"][:] if "truncation" in dataset.features else ())}
    }
    if config.special_tokens == "released" and tokenizer.bos_token_id is None:
        raise UserError(
            f"data.special_tokens=released puts BOS before every prompt, but the tokenizer of "
            f"'{tokenizer.name_or_path}' has none; use data.special_tokens=dedupe"
        )
    encoder = Encoder(tokenizer)

    def build(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        prompts = encoder.batch(batch["prompt"])
        wholes = {
            side: encoder.batch([p + r for p, r in zip(batch["prompt"], batch[side], strict=True)])
            for group in sides
            for side in group
        }
        truncations = batch.get("truncation", [config.truncation] * len(prompts))
        rows = []
        for index, (prompt, truncation) in enumerate(zip(prompts, truncations, strict=True)):
            join = partial(_join_groups, prompt, batch, wholes, index, sides, encoder)
            row = join(every[truncation])
            if config.overlong != "truncate":
                whole = join(replace(every[truncation], max_length=2**31, max_prompt_length=2**31 - 1))
                row["overlong"] = _longest(whole) > config.max_length
            rows.append(row)
        return _columns(rows)

    tokenized = _tokenize(dataset, tokenizer, config, "tokenize_pairs", build, options=[*sides])
    return without_overlong(tokenized, config.overlong, config.max_length)


def _join_groups(
    prompt: list[int],
    batch: Mapping[str, list[Any]],
    wholes: Mapping[str, list[list[int]]],
    index: int,
    sides: Sequence[tuple[str, ...]],
    encoder: Encoder,
    rules: Rules,
) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for names in sides:
        parts = {name: (wholes[name][index], batch[name][index]) for name in names}
        row |= join_row(prompt, parts, rules, continuation=encoder.continuation, is_blank=encoder.is_blank)
    del row["prompt_input_ids"]
    return row


def text_features(dataset: Dataset, sides: Sequence[str] = ("chosen", "rejected")) -> Features:
    """Return the features of rendered pairs: text in place of messages, everything else as it was."""
    text = {name: Value("string") for name in ("prompt", *sides)}
    return Features({**dataset.features, **text})


def text_columns(dataset: Dataset) -> list[str]:
    """Return the columns that hold no numbers, which tokenised pairs do not keep."""
    return [name for name, feature in dataset.features.items() if getattr(feature, "dtype", None) not in _NUMERIC]


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


def _hold_out(dataset: Dataset, fraction: float) -> tuple[Dataset, Dataset]:
    if not 0 < fraction < 1:
        raise UserError(f"data.eval_fraction={fraction} must be between 0 and 1")
    held = math.ceil(fraction * len(dataset))
    if held >= len(dataset):
        raise UserError(f"data.eval_fraction={fraction} of {len(dataset)} rows leaves none to train on")
    parts = dataset.train_test_split(test_size=held, seed=42)
    return parts["train"], parts["test"]


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
    for row in track(rows, description=label, console=note_console(), transient=True):
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


def _prompts_differ(values: dict[str, Any]) -> bool:
    chosen, rejected = values.get("chosen"), values.get("rejected")
    return isinstance(chosen, list) and isinstance(rejected, list) and chosen[:-1] != rejected[:-1]


def _report_rejects(rejects: list[dict[str, str]], role: str, folder: Path | None, part: str) -> None:
    where = ""
    if folder is not None:
        path = folder / f"rejects-{role}{part}.jsonl"
        write_text(path, "".join(json.dumps(reject, ensure_ascii=False) + "\n" for reject in rejects))
        where = f", listed in {path}"
    logger.warning("%d bad %s rows were set aside%s; the first: %s", len(rejects), role, where, rejects[0])


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


def _map(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    stage: str,
    build: Callable[[Any], dict[str, Any]],
    features: Features,
    options: Sequence[Any] = (),
    drop: str | None = None,
) -> Dataset:
    parts = [
        stage,
        *options,
        fingerprint_dataset(dataset),
        fingerprint_tokenizer(tokenizer),
        config.system_message,
        config.boundary,
    ]
    return map_cached(
        dataset,
        build,
        parts,
        cache_dir=config.cache_dir,
        num_proc=config.num_proc,
        desc=stage.replace("_", " "),
        features=features,
        remove_columns=drop,
    )


def _tokenize(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    stage: str,
    build: Callable[[Mapping[str, list[Any]]], dict[str, list[Any]]],
    options: Sequence[Any] = (),
) -> Dataset:
    settings = ("max_length", "max_prompt_length", "truncation", "overlong", "special_tokens", "boundary")
    parts = [
        stage,
        *options,
        fingerprint_dataset(dataset),
        fingerprint_tokenizer(tokenizer),
        [getattr(config, name) for name in settings],
    ]
    return map_cached(
        dataset,
        build,
        parts,
        cache_dir=config.cache_dir,
        num_proc=config.num_proc,
        desc=stage.replace("_", " "),
        batched=True,
        remove_columns=text_columns(dataset),
    )


_NUMERIC = ("float64", "float32", "int64", "int32", "bool")


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {**{name: [row[name] for row in rows] for name in rows[0]}, "length": [_longest(row) for row in rows]}


def _longest(row: Mapping[str, Any]) -> int:
    return max(len(ids) for name, ids in row.items() if name.endswith("_input_ids"))


def without_overlong(dataset: Dataset, overlong: str, max_length: int) -> Dataset:
    """Return the tokenised pairs without those that the column ``overlong`` marks; all of them without such a column.

    Raises:
        UserError: for ``overlong=error`` and a marked pair, and if no pair is left.
    """
    if "overlong" not in dataset.column_names:
        return dataset
    marks = dataset["overlong"][:]
    kept = [index for index, mark in enumerate(marks) if not mark]
    if overlong == "error" and len(kept) < len(marks):
        raise UserError(
            f"pair {marks.index(True) + 1} is longer than data.max_length={max_length} tokens "
            f"({len(marks) - len(kept)} such pairs); raise the limit or set data.overlong=truncate or drop"
        )
    if not kept:
        raise UserError(f"every pair is longer than data.max_length={max_length} tokens; raise the limit")
    return dataset.select(kept).remove_columns("overlong")
