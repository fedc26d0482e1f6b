"""From data sets to tokenised rows: ``load_examples`` (rows of the data sets -> examples by prompt), then
``prepare_rows`` (examples -> rows of one kind, in the order of training -> ids).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from rich.progress import track
from transformers import PreTrainedTokenizerBase

from reproalign.common.config import DataConfig
from reproalign.common.data.cache import cache_folder, cached, fingerprint_dataset, fingerprint_tokenizer
from reproalign.common.data.prepare import read_split, render_pairs, tokenize_pairs
from reproalign.common.data.tokenize import check_lengths
from reproalign.common.errors import UserError, choose
from reproalign.common.files import sha256_json
from reproalign.radpo.released import Conversations
from reproalign.radpo.rows import KINDS, Row, RowRules, build_rows, check_mismatch, lay_out, mismatch, shuffle_prompts
from reproalign.radpo.sources import SOURCES, Examples, Source, assistant, checked

logger = logging.getLogger(__name__)

LONG = 1000  # batches whose tokenising shows its progress


@dataclass
class LoadedExamples:
    """Examples of both splits, and where they came from."""

    train: Examples
    evaluation: Examples | None
    provenance: dict[str, dict[str, Any]] = field(default_factory=dict)


def load_examples(
    config: DataConfig,
    datasets: Sequence[str],
    *,
    variant: str = "paper",
    seed: int = 1,
    rejects_dir: Path | None = None,
) -> LoadedExamples:
    """Read both splits of ``datasets``; a prompt that two of them have is the later one's.

    ``data.path`` and ``data.eval_path`` replace the Hub: the file or folder of the one data set, or a folder with one
    for each by its name. The splits ``train`` and ``test`` mean each data set's own.

    Args:
        config: where rows are, and what becomes of bad ones; ``eval_fraction`` holds prompts out.
        datasets: names of sources.
        variant: ``released`` keeps pairs with an empty response and of two equal ones (ERRATA Q22).
        seed: of what is held out.
        rejects_dir: where ``data.on_error=skip`` lists bad rows.

    Raises:
        UserError: for a bad row under ``on_error=raise``, and for unusable settings.
    """
    if config.mix or config.fraction < 1 or (config.name and len(datasets) != 1):
        raise UserError("data.mix, data.fraction and data.name are for a single data set; list several in datasets")
    train, provenance = read_examples(config, datasets, "train", variant=variant, rejects_dir=rejects_dir)
    evaluation = None
    if config.eval_path or (config.eval_split and not config.path):
        evaluation, facts = read_examples(config, datasets, "evaluation", variant=variant, rejects_dir=rejects_dir)
        provenance |= facts
    elif config.eval_fraction:
        train, evaluation = _hold_out(train, config.eval_fraction, seed)
    return LoadedExamples(train, evaluation, provenance)


def read_examples(
    config: DataConfig,
    datasets: Sequence[str],
    role: str,
    *,
    variant: str = "paper",
    rejects_dir: Path | None = None,
) -> tuple[Examples, dict[str, dict[str, Any]]]:
    """Read one split (``train`` or ``evaluation``) of ``datasets``; see :func:`load_examples`."""
    examples: Examples = {}
    provenance = {}
    for name in datasets:
        source = SOURCES[choose("data set", name, SOURCES)]
        if source.evaluation_only and role == "train":
            raise UserError(f"{name} is for evaluation only; train on another data set")
        single = _for_source(config, source, alone=len(datasets) == 1)
        to_part = source.to_part if variant == "released" or source.any_pair else partial(checked, source.to_part)
        parts, facts = read_split(single, source, role, to_part, rejects_dir, part=f"-{name}")
        found = source.collect(parts, role == "train")
        if not found:
            raise UserError(f"{name}: its {facts['rows_read']} {role} rows leave no example; give more rows")
        examples |= found
        pairs = sum(len(example.pairs) for example in found.values())
        digest = sha256_json([vars(example) for example in found.values()])
        provenance[f"{role}:{name}"] = {**facts, "prompts": len(found), "pairs": pairs, "sha256": digest}
    return examples, provenance


def prepare_rows(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    rules: RowRules,
    *,
    max_rows: int | None = None,
) -> tuple[Dataset, dict[str, int]]:
    """Turn examples into tokenised rows in the order of training; ``data.truncation`` is each source's own.

    Args:
        examples: by prompt.
        tokenizer: with a chat template (the release's is :data:`~reproalign.common.data.templates.TEMPLATES` halos).
        config: lengths, ``overlong``.
        rules: which rows, in which order.
        max_rows: rows at most, see :func:`~reproalign.radpo.rows.lay_out`.

    Returns:
        ``chosen_input_ids``, ``chosen_prompt_length``, the same for rejected; or ``input_ids``, ``prompt_length``, for
        unpaired kinds ``label``, and for ``mismatched`` ``KL_input_ids`` and ``KL_prompt_length``. And the numbers of
        rows and of rows dropped with incomplete batches.

    Raises:
        UserError: for settings that cannot be met by these examples.
    """
    _check(config, rules)
    batches, dropped = lay_out(build_rows(examples, rules), rules, max_rows)
    if dropped:
        logger.warning("%d rows of incomplete batches are left out", dropped)
    tokenized = _tokenize(batches, tokenizer, config, rules)
    return tokenized, {"rows": len(tokenized), "dropped": dropped}


def prepare_held_out(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, config: DataConfig, rules: RowRules
) -> tuple[Dataset, int]:
    """Turn the held-out examples into ``data.max_eval_rows`` tokenised rows, in the order of their evaluation.

    Under ``released`` an evaluation changes the conversations that the next one meets (ERRATA Q7), so the rows of as
    many passes follow one another as differ; evaluations after them see those of the last one. A limit beyond the split
    goes on with its next epochs; without a limit a pass is one epoch (ERRATA Q21).

    Returns:
        The rows of all passes, as :func:`prepare_rows` has them, and the number of rows of a pass.
    """
    _check(config, rules)
    batches = held_out_batches(examples, rules, config.max_eval_rows)
    size = sum(map(len, batches))
    if rules.variant != "released":
        return _tokenize(batches, tokenizer, config, rules), size
    for passes in (2, 4, 8):
        rows = _tokenize(batches * passes, tokenizer, config, rules)
        found = [rows.select(range(start, start + size)).to_list() for start in range(0, len(rows), size)]
        if found[-1] == found[-2]:
            break
    while len(found) > 1 and found[-1] == found[-2]:
        found.pop()
    return rows.select(range(len(found) * size)), size


def held_out_batches(examples: Examples, rules: RowRules, limit: int | None) -> list[list[Row]]:
    """Return the batches of one evaluation, in their order.

    Under ``released`` a limit takes rows in the order of training, goes on with the next epochs of a split that is
    shorter, and is rounded up to whole batches; without one an evaluation is the whole batches of an epoch (ERRATA
    Q21).

    Args:
        examples: the held-out split.
        rules: kind, seed and batch size; the rest is of training.
        limit: rows at most; null: all.
    """
    once = replace(rules, epochs=1, processes=1, accumulation=1, repeats=1, incomplete="keep")
    if rules.variant == "released":
        once = replace(once, epochs=None if limit else 1, incomplete="drop")
    return lay_out(build_rows(examples, once), once, limit)[0]


def _check(config: DataConfig, rules: RowRules) -> None:
    choose("kind", rules.kind, KINDS)
    choose("variant", rules.variant, ["paper", "released"])
    check_lengths(config.max_length, config.max_prompt_length)
    if config.boundary != "exact":
        raise UserError(f"data.boundary={config.boundary} is not this paper's release; set variant=released instead")


def _tokenize(
    batches: list[list[Row]], tokenizer: PreTrainedTokenizerBase, config: DataConfig, rules: RowRules
) -> Dataset:
    if rules.kind == "mismatched":
        check_mismatch(batches)
    tokenize = _tokenize_released if rules.variant == "released" else _tokenize_paper
    tokenized = tokenize(batches, tokenizer, config, rules)
    names = {"completion_input_ids": "input_ids", "completion_prompt_length": "prompt_length"}
    return tokenized.rename_columns({old: new for old, new in names.items() if old in tokenized.column_names})


def _tokenize_paper(
    batches: list[list[Row]], tokenizer: PreTrainedTokenizerBase, config: DataConfig, rules: RowRules
) -> Dataset:
    sides = KINDS[rules.kind]
    names = [name for group in sides for name in group]
    rows = [row for batch in (mismatch(batches) if rules.kind == "mismatched" else batches) for row in batch]
    records = Dataset.from_list([row | {name: [assistant(row[name])] for name in names} for row in rows])
    rendered = render_pairs(records, tokenizer, config, sides=names, generation=True)
    return tokenize_pairs(rendered, tokenizer, config, sides=sides)


def _tokenize_released(
    batches: list[list[Row]], tokenizer: PreTrainedTokenizerBase, config: DataConfig, rules: RowRules
) -> Dataset:
    def build() -> Dataset:
        conversations = Conversations(
            tokenizer, config.max_length, config.max_prompt_length, clean_up_spaces=rules.clean_up_spaces
        )
        rows: list[Row] = []
        for number, batch in enumerate(track(batches, "tokenising", disable=len(batches) < LONG)):
            again = rules.repeats > 1 and number % rules.repeats > 0
            rows += rows[-len(batch) :] if again else _released_batch(batch, conversations, rules.kind)
        return Dataset.from_list(rows)

    records = fingerprint_dataset(Dataset.from_list([row for batch in batches for row in batch]))
    settings = [rules.kind, [len(batch) for batch in batches], config.max_length, config.max_prompt_length]
    settings += [rules.repeats, rules.clean_up_spaces]
    parts = ["radpo released 2", records, fingerprint_tokenizer(tokenizer), settings]
    return cached(cache_folder(config.cache_dir), parts, build)


def _released_batch(batch: list[Row], conversations: Conversations, kind: str) -> list[Row]:
    """Tokenise a batch in the release's order: row by row and side by side; then its mismatched pairs."""
    found = [
        {side: conversations.element(row["key"], row["prompt"], row[side]) for side in KINDS[kind][0]} for row in batch
    ]
    if kind == "mismatched":  # a mismatched response was cut for its own prompt first
        following = [sides["completion"].response for sides in found[1:] + found[:1]]
        for row, sides, response in zip(batch, found, following, strict=True):
            sides["KL"] = conversations.element(row["key"], row["prompt"], response)
    rows = []
    for row, sides in zip(batch, found, strict=True):
        tokenized: Row = {"label": row["label"]} if "label" in row else {}
        for side, element in sides.items():
            tokenized |= {f"{side}_input_ids": element.ids, f"{side}_prompt_length": element.prompt_length}
        rows.append(tokenized | {"length": max(len(element.ids) for element in sides.values())})
    return rows


def _for_source(config: DataConfig, source: Source, *, alone: bool) -> DataConfig:
    """Return ``config`` for one of several data sets: its own split names, and its part of the local folders."""
    own = dict(zip(("train", "test"), source.splits, strict=True))
    changes: dict[str, Any] = {
        name: own.get(value, value)
        for name, value in (("train_split", config.train_split), ("eval_split", config.eval_split))
        if value
    }
    if not alone:
        changes |= {
            name: f"{path}/{source.name}"
            for name, path in (("path", config.path), ("eval_path", config.eval_path))
            if path
        }
    return replace(config, **changes)


def _hold_out(examples: Examples, fraction: float, seed: int) -> tuple[Examples, Examples]:
    if not 0 < fraction < 1:
        raise UserError(f"data.eval_fraction={fraction} must be between 0 and 1")
    order = shuffle_prompts(examples, seed)
    held = math.ceil(fraction * len(order))
    if held >= len(order):
        raise UserError(f"data.eval_fraction={fraction} of {len(order)} prompts leaves none to train on")
    return {e.key: e for e in order[held:]}, {e.key: e for e in order[:held]}
