"""Preference pairs as a reward model reads them: both responses as whole dialogues; cached by content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets import Dataset

from reproalign.common.config.data import PreparingConfig
from reproalign.common.data.cache import fingerprint_dataset, map_cached
from reproalign.common.reward.reading import Reader
from reproalign.common.text.pairs import settle_overlong, text_columns
from reproalign.common.text.render import text_features

SIDES = ("chosen", "rejected")


def render_dialogues(dataset: Dataset, reader: Reader, data: PreparingConfig) -> Dataset:
    """Render records: ``chosen`` and ``rejected`` as whole dialogues, and the ``prompt``. Text stays as it is.

    Args:
        dataset: preference records (:class:`reproalign.common.data.records.PreferenceRecord`).
        reader: of the reward model.
        data: processes and cache.
    """

    def build(record: Mapping[str, Any]) -> dict[str, str]:
        prompt = record["prompt"]
        wholes = {side: prompt + record[side] for side in SIDES}
        if isinstance(prompt, str):
            return {"prompt": prompt, **wholes}
        return {"prompt": reader.render(prompt), **{side: reader.render(whole) for side, whole in wholes.items()}}

    parts = ["render_dialogues", fingerprint_dataset(dataset), *reader.fingerprint()]
    return map_cached(
        dataset,
        build,
        parts,
        cache_dir=data.cache_dir,
        num_proc=data.num_proc,
        desc="render dialogues",
        features=text_features(dataset),
    )


def tokenize_dialogues(dataset: Dataset, reader: Reader, overlong: str, data: PreparingConfig) -> Dataset:
    """Tokenise rendered dialogues into ``chosen_input_ids``, ``rejected_input_ids`` and ``length`` (of the longer one).

    Numeric columns are kept.

    Args:
        dataset: rendered pairs.
        reader: of the reward model; its rules hold the length.
        overlong: what becomes of a pair with a longer side: drop (MMPO's release), truncate, or error.
        data: processes and cache.

    Raises:
        UserError: for ``overlong=error`` and such a pair, and if no pair is left.
    """
    limit = reader.rules.max_length

    def build(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        rows = {f"{side}_input_ids": reader.encode(batch[side]) for side in SIDES}
        lengths = [max(map(len, pair)) for pair in zip(*rows.values(), strict=True)]
        marks = [length > limit for length in lengths]
        if overlong == "truncate":
            cut = {name: [reader.truncate(ids) for ids in column] for name, column in rows.items()}
            return {**cut, "length": [min(length, limit) for length in lengths], "overlong": marks}
        return {**rows, "length": lengths, "overlong": marks}

    parts = ["tokenize_dialogues", fingerprint_dataset(dataset), *reader.fingerprint(), overlong, "marked"]
    tokenized = map_cached(
        dataset,
        build,
        parts,
        cache_dir=data.cache_dir,
        num_proc=data.num_proc,
        desc="tokenize dialogues",
        batched=True,
        remove_columns=text_columns(dataset),
    )
    return settle_overlong(tokenized, overlong, limit)
