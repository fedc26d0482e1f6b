"""Rendered pairs as token ids; what becomes of the pairs that are too long."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from reproalign.common.config.data import PreparingConfig
from reproalign.common.config.text import PairTextConfig
from reproalign.common.data.cache import fingerprint_dataset, fingerprint_tokenizer, map_cached
from reproalign.common.errors import UserError
from reproalign.common.text.tokenize import Encoder, TokenRules, begins_with_bos, check_lengths, join_row

logger = logging.getLogger(__name__)

_NUMERIC = ("float64", "float32", "int64", "int32", "bool")


def tokenize_pairs(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    text: PairTextConfig,
    data: PreparingConfig,
    *,
    sides: Sequence[tuple[str, ...]] = (("chosen", "rejected"),),
) -> Dataset:
    """Tokenise rendered pairs (see :mod:`~reproalign.common.text.tokenize`); numeric columns are kept.

    Adds ``chosen_input_ids``, ``chosen_prompt_length``, the same for rejected, and ``length`` (the longest side).
    Sides in one tuple keep the same part of a long prompt; unpaired responses stand in tuples of their own. A column
    ``truncation`` overrides ``text.truncation`` row by row. ``overlong`` says what becomes of rows that exceed
    ``max_length``: truncate, drop, or error.

    Raises:
        UserError: for ``overlong=error`` and such a pair, or lengths that leave no room for a response.
    """
    check_lengths(text.max_length, text.max_prompt_length)
    every = {
        truncation: TokenRules(
            bos_id=tokenizer.bos_token_id,
            eos_id=tokenizer.eos_token_id,
            max_length=text.max_length,
            max_prompt_length=text.max_prompt_length,
            truncation=truncation,
            boundary=text.boundary,
            special_tokens=text.special_tokens,
            add_bos=begins_with_bos(tokenizer),
        )
        for truncation in {text.truncation, *(dataset["truncation"][:] if "truncation" in dataset.features else ())}
    }
    if text.special_tokens == "released" and tokenizer.bos_token_id is None:
        raise UserError(
            f"text.special_tokens=released puts BOS before every prompt, but the tokenizer of "
            f"'{tokenizer.name_or_path}' has none; use text.special_tokens=dedupe"
        )
    encoder = Encoder(tokenizer)

    def build(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        prompts = encoder.batch(batch["prompt"])
        wholes = {
            side: encoder.batch([p + r for p, r in zip(batch["prompt"], batch[side], strict=True)])
            for group in sides
            for side in group
        }
        truncations = batch.get("truncation", [text.truncation] * len(prompts))
        rows = []
        for index, (prompt, truncation) in enumerate(zip(prompts, truncations, strict=True)):
            rows.append(_join_groups(prompt, batch, wholes, index, sides, encoder, every[truncation]))
        return _columns(rows)

    tokenized = _tokenize(dataset, tokenizer, text, data, "tokenize_pairs", build, options=[*sides])
    return settle_overlong(tokenized, text.overlong, text.max_length)


def _join_groups(
    prompt: list[int],
    batch: Mapping[str, list[Any]],
    wholes: Mapping[str, list[list[int]]],
    index: int,
    sides: Sequence[tuple[str, ...]],
    encoder: Encoder,
    rules: TokenRules,
) -> dict[str, Any]:
    row: dict[str, Any] = {}
    whole = 0
    for names in sides:
        parts = {name: (wholes[name][index], batch[name][index]) for name in names}
        found = join_row(prompt, parts, rules, continuation=encoder.continuation, is_blank=encoder.is_blank)
        whole = max(whole, found.pop("whole"))
        row |= found
    del row["prompt_input_ids"]
    return {**row, "overlong": whole > rules.max_length}


def _tokenize(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    text: PairTextConfig,
    data: PreparingConfig,
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
        [getattr(text, name) for name in settings],
        "overlong is marked",  # which it was not in every cache of earlier versions
    ]
    return map_cached(
        dataset,
        build,
        parts,
        cache_dir=data.cache_dir,
        num_proc=data.num_proc,
        desc=stage.replace("_", " "),
        batched=True,
        remove_columns=text_columns(dataset),
    )


def text_columns(dataset: Dataset) -> list[str]:
    """Return the columns that hold no numbers, which tokenised pairs do not keep."""
    return [name for name, feature in dataset.features.items() if getattr(feature, "dtype", None) not in _NUMERIC]


def settle_overlong(dataset: Dataset, overlong: str, max_length: int) -> Dataset:
    """Say how many tokenised pairs the column ``overlong`` marks, and leave them out unless they were truncated.

    Raises:
        UserError: for ``overlong=error`` and a marked pair, and if no pair is left.
    """
    marks = dataset["overlong"][:]
    kept = [index for index, mark in enumerate(marks) if not mark]
    if overlong == "error" and len(kept) < len(marks):
        raise UserError(
            f"pair {marks.index(True) + 1} is longer than text.max_length={max_length} tokens "
            f"({len(marks) - len(kept)} such pairs); raise the limit or set text.overlong=truncate or drop"
        )
    truncated = overlong == "truncate"
    if not kept and not truncated:
        raise UserError(f"every pair is longer than text.max_length={max_length} tokens; raise the limit")
    if len(kept) < len(marks):
        count, done = len(marks) - len(kept), "truncated" if truncated else "dropped"
        logger.warning(
            *("%d of %d pairs (%.0f%%) are longer than text.max_length=%d tokens and %s", count, len(marks)),
            *(100 * count / len(marks), max_length, done),
        )
    return (dataset if truncated else dataset.select(kept)).remove_columns("overlong")


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {**{name: [row[name] for row in rows] for name in rows[0]}, "length": [_longest(row) for row in rows]}


def _longest(row: Mapping[str, Any]) -> int:
    return max(len(ids) for name, ids in row.items() if name.endswith("_input_ids"))
