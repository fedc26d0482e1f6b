"""From data sets to tokenised rows: ``load_examples`` (rows of the data sets -> examples by prompt), then
``prepare_rows`` (examples -> rows of one kind, in the order of training -> ids).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from reproalign.common.config import DataConfig
from reproalign.common.data.cache import cache_folder, cached, fingerprint_dataset, fingerprint_tokenizer
from reproalign.common.data.prepare import read_split, render_pairs, tokenize_pairs
from reproalign.common.data.records import Message
from reproalign.common.data.templates import render
from reproalign.common.data.tokenize import Encoder, check_lengths
from reproalign.common.errors import UserError, choose
from reproalign.common.files import sha256_json
from reproalign.radpo.rows import KINDS, Row, RowRules, build_rows, lay_out, mismatch, shuffle_prompts
from reproalign.radpo.sources import SOURCES, Examples, Source, assistant

logger = logging.getLogger(__name__)


@dataclass
class LoadedExamples:
    """Examples of both splits, and where they came from."""

    train: Examples
    evaluation: Examples | None
    provenance: dict[str, dict[str, Any]] = field(default_factory=dict)


def load_examples(
    config: DataConfig, datasets: Sequence[str], *, seed: int = 1, rejects_dir: Path | None = None
) -> LoadedExamples:
    """Read both splits of ``datasets``; a prompt that two of them have is the later one's.

    ``data.path`` and ``data.eval_path`` replace the Hub: the file or folder of the one data set, or a folder with one
    for each by its name. The splits ``train`` and ``test`` mean each data set's own.

    Args:
        config: where rows are, and what becomes of bad ones; ``eval_fraction`` holds prompts out.
        datasets: names of sources.
        seed: of what is held out.
        rejects_dir: where ``data.on_error=skip`` lists bad rows.

    Raises:
        UserError: for a bad row under ``on_error=raise``, and for unusable settings.
    """
    if config.mix or config.fraction < 1 or (config.name and len(datasets) != 1):
        raise UserError("data.mix, data.fraction and data.name are for a single data set; list several in datasets")
    train, provenance = read_examples(config, datasets, "train", rejects_dir=rejects_dir)
    evaluation = None
    if config.eval_path or (config.eval_split and not config.path):
        evaluation, facts = read_examples(config, datasets, "evaluation", rejects_dir=rejects_dir)
        provenance |= facts
    elif config.eval_fraction:
        train, evaluation = _hold_out(train, config.eval_fraction, seed)
    return LoadedExamples(train, evaluation, provenance)


def read_examples(
    config: DataConfig, datasets: Sequence[str], role: str, *, rejects_dir: Path | None = None
) -> tuple[Examples, dict[str, dict[str, Any]]]:
    """Read one split (``train`` or ``evaluation``) of ``datasets``; see :func:`load_examples`."""
    examples: Examples = {}
    provenance = {}
    for name in datasets:
        source = SOURCES[choose("data set", name, SOURCES)]
        if source.evaluation_only and role == "train":
            raise UserError(f"{name} is for evaluation only; train on another data set")
        single = _for_source(config, source, alone=len(datasets) == 1)
        parts, facts = read_split(single, source, role, source.to_part, rejects_dir, part=f"-{name}")
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
        max_rows: rows of an epoch, from the front.

    Returns:
        ``chosen_input_ids``, ``chosen_prompt_length``, the same for rejected; or ``input_ids``, ``prompt_length``, for
        unpaired kinds ``label``, and for ``kto`` ``KL_input_ids`` and ``KL_prompt_length``. And the numbers of rows and
        of rows dropped with incomplete batches.

    Raises:
        UserError: for settings that cannot be met by these examples.
    """
    choose("kind", rules.kind, KINDS)
    choose("variant", rules.variant, ["paper", "released"])
    check_lengths(config.max_length, config.max_prompt_length)
    if config.boundary != "exact":
        raise UserError(f"data.boundary={config.boundary} is not this paper's release; set variant=released instead")
    batches, dropped = lay_out(build_rows(examples, rules)[:max_rows], rules)
    if dropped:
        logger.warning("%d rows of incomplete batches are left out; incomplete=keep keeps them", dropped)
    tokenize = _tokenize_released if rules.variant == "released" else _tokenize_paper
    tokenized = tokenize(batches, tokenizer, config, rules.kind)
    names = {"completion_input_ids": "input_ids", "completion_prompt_length": "prompt_length"}
    tokenized = tokenized.rename_columns({old: new for old, new in names.items() if old in tokenized.column_names})
    return tokenized, {"rows": len(tokenized), "dropped": dropped}


def released_prompt(encoder: Encoder, prompt: list[Message], max_prompt_length: int) -> tuple[list[Message], int]:
    """Shorten a prompt as the release does (ERRATA Q7): it keeps the beginning, whatever the source's own mode.

    The first turn that passes ``max_prompt_length``, counted with the template around each turn, loses from its end as
    many tokens as are too many, and the turns after it are dropped.

    Returns:
        The turns, and the tokens that the release counts for them.
    """
    used = 0
    kept: list[Message] = []
    for turn in prompt:
        templated = len(encoder(render(encoder.tokenizer, [turn], generation=True)))
        excess = used + templated - max_prompt_length
        if excess > 0:
            content = encoder.tokenizer.decode(_plain(encoder, turn["content"])[:-excess])
            return [*kept, {**turn, "content": str(content)}], max_prompt_length
        used += templated
        kept.append(turn)
    return kept, used


def released_response(encoder: Encoder, text: str, room: int) -> str:
    """Shorten a response to ``room`` tokens, without special ones; the template around it is not counted."""
    return str(encoder.tokenizer.decode(_plain(encoder, text)[:room]))


def released_ids(encoder: Encoder, prompt: list[Message], response: str) -> tuple[list[int], int]:
    """Return the ids of the whole dialogue, and how many the prompt with the assistant's header takes."""
    tokenizer = encoder.tokenizer
    head = encoder(render(tokenizer, prompt, generation=True))
    if head and head[-1] in (tokenizer.eos_token_id, tokenizer.pad_token_id):
        head.pop()
    whole = encoder(render(tokenizer, [*prompt, assistant(response)]))
    return whole, min(len(head), len(whole))


def _tokenize_paper(
    batches: list[list[Row]], tokenizer: PreTrainedTokenizerBase, config: DataConfig, kind: str
) -> Dataset:
    sides = KINDS[kind]
    names = [name for group in sides for name in group]
    rows = [row for batch in (mismatch(batches) if kind == "kto" else batches) for row in batch]
    records = Dataset.from_list([row | {name: [assistant(row[name])] for name in names} for row in rows])
    rendered = render_pairs(records, tokenizer, config, sides=names, generation=True)
    return tokenize_pairs(rendered, tokenizer, config, sides=sides)


def _tokenize_released(
    batches: list[list[Row]], tokenizer: PreTrainedTokenizerBase, config: DataConfig, kind: str
) -> Dataset:
    encoder, sides = Encoder(tokenizer), KINDS[kind][0]

    def shorten(row: Row) -> Row:
        prompt, used = released_prompt(encoder, row["prompt"], config.max_prompt_length)
        room = config.max_length - used
        return row | {"prompt": prompt, "room": room} | {s: released_response(encoder, row[s], room) for s in sides}

    def build() -> Dataset:
        shortened = [[shorten(row) for row in batch] for batch in batches]
        names = sides
        if kind == "kto":  # mismatched responses are shortened for their own prompt first, and then for the other
            names = ("completion", "KL")
            shortened = mismatch(shortened)
        rows = []
        for row in (row for batch in shortened for row in batch):
            tokenized = {"label": row["label"]} if "label" in row else {}
            for name in names:
                text = released_response(encoder, row[name], row["room"]) if name == "KL" else row[name]
                tokenized[f"{name}_input_ids"], tokenized[f"{name}_prompt_length"] = released_ids(
                    encoder, row["prompt"], text
                )
            tokenized["length"] = max(len(tokenized[f"{name}_input_ids"]) for name in names)
            rows.append(tokenized)
        return Dataset.from_list(rows)

    records = fingerprint_dataset(Dataset.from_list([row for batch in batches for row in batch]))
    settings = [kind, [len(batch) for batch in batches], config.max_length, config.max_prompt_length]
    parts = ["radpo released", records, fingerprint_tokenizer(tokenizer), settings]
    return cached(cache_folder(config.cache_dir), parts, build)


def _plain(encoder: Encoder, text: str) -> list[int]:
    tokenizer = encoder.tokenizer
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return [token for token in encoder(text) if token not in special]


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
