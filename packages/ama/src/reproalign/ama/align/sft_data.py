"""From rows to the tokens that are fine-tuned on, with what is held out and what is replayed beside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from reproalign.ama.align.config import ReplayConfig, SFTConfig
from reproalign.ama.align.packing import LearnedText, blocks, effective_block_size, pack, to_dataset, tokenize_texts
from reproalign.ama.align.rows import Entry, find_files, read_rows
from reproalign.common.data.cache import fingerprint_dataset, fingerprint_rows
from reproalign.common.data.holdout import hold_out
from reproalign.common.data.reading import read_local
from reproalign.common.data.records import Message
from reproalign.common.errors import UserError
from reproalign.common.records import Run
from reproalign.common.text.collate import IGNORED
from reproalign.common.text.prompts import prompt_text
from reproalign.common.text.shown import used_rows
from reproalign.common.text.templates import SEPARATORS, TURN_MARKS, render, render_completion, transcript
from reproalign.common.training.sft import tokenize_responses


@dataclass(frozen=True)
class TextRules:
    """How rows become tokens, with nothing left open; the fields of :class:`SFTConfig` of the same names."""

    packing: str
    loss_on: str
    layout: str
    response_separator: str
    block_size: int | None
    group_size: int
    max_length: int


@dataclass(frozen=True)
class SFTRows:
    """Tokenised rows of ``input_ids`` and ``labels``; nothing may be held out."""

    train: Dataset
    held_out: Dataset | None


def load(config: SFTConfig, rules: TextRules, tokenizer: PreTrainedTokenizerBase, run: Run) -> SFTRows:
    """Read, divide, tokenise and mix the rows, and record what came of them.

    Raises:
        UserError: for what is wrong in the files, and if too little is left.
    """
    entries, skipped = read_rows(config.rows, "rows")
    held_out, _ = read_rows(config.eval_rows, "eval_rows")
    if config.eval_fraction:
        entries, held_out = hold_out(entries, config.eval_fraction, config.seed, _prompt, key="eval_fraction")
    for key, files in (("rows", config.rows), ("eval_rows", config.eval_rows), ("replay.rows", config.replay.rows)):
        for path in find_files(files, key):
            run.add_fingerprint("data", f"{key} {path.name}", fingerprint_rows(path), path=str(path))
    train = tokenize(entries, tokenizer, rules, "rows")
    evaluation = tokenize(held_out, tokenizer, rules, "eval_rows") if held_out else None
    counts = {"rows": len(entries), "skipped": skipped, "held_out": len(held_out), **_counted(train, "")}
    if config.replay.rows:
        size = effective_block_size(rules.block_size, tokenizer.model_max_length)
        size = size if rules.packing == "blocks" else min(rules.max_length, tokenizer.model_max_length)
        texts = replayed(config.replay, counts["tokens"], size, tokenizer, config.seed)
        counts |= _counted(texts, "replay_")
        train = concatenate_datasets([train, texts])
    run.set("rows", counts)
    run.add_fingerprint("data", "train tokens", fingerprint_dataset(train), rows=len(train))
    used_rows(run, tokenizer, train)
    return SFTRows(train, evaluation)


def tokenize(
    entries: Sequence[Entry], tokenizer: PreTrainedTokenizerBase, rules: TextRules, key: str = "rows"
) -> Dataset:
    """Return ``input_ids`` and ``labels`` of rows, in blocks or one by one.

    One by one, a dialogue is tokenised as when the model is asked, with EOS at its end; so is a text, which loses its
    end if it is too long.

    Args:
        entries: the rows.
        tokenizer: of the model.
        rules: how.
        key: the option they came from.

    Raises:
        UserError: for a dialogue that does not end with an answer where that is what is learned, a layout that cannot
            hold it, or too little text for a block.
    """
    for number, entry in enumerate(entries, start=1):
        ends = not isinstance(entry, list) or (len(entry) > 1 and entry[-1]["role"] == "assistant")
        if not ends and (rules.loss_on == "response" or rules.packing == "none"):
            raise UserError(
                f"{key}: dialogue {number} must end with an assistant's turn after a prompt; set packing=blocks "
                "loss_on=all to learn it as text"
            )
    if rules.packing == "blocks":
        texts = [_text(entry, tokenizer, rules) for entry in entries]
        return pack(texts, tokenizer, rules.block_size, group_size=rules.group_size, key=key)
    rows: list[dict[str, Any]] = [{} for _ in entries]
    dialogues = [(place, entry) for place, entry in enumerate(entries) if isinstance(entry, list)]
    plain = [(place, entry) for place, entry in enumerate(entries) if not isinstance(entry, list)]
    if dialogues:
        options: dict[str, Any] = {"layout": rules.layout, "max_length": rules.max_length}
        options["response_separator"] = rules.response_separator
        for (place, _), row in zip(
            dialogues, tokenize_responses([turns for _, turns in dialogues], tokenizer, **options), strict=True
        ):
            rows[place] = row if rules.loss_on == "response" else {**row, "labels": row["input_ids"]}
    if plain:
        made = tokenize_texts([text for _, text in plain], tokenizer)
        for (place, _), ids, labels in zip(plain, made["input_ids"], made["labels"], strict=True):
            end = tokenizer.eos_token_id
            rows[place] = {
                "input_ids": [*ids, end][: rules.max_length],
                "labels": [*labels, end][: rules.max_length],
            }
    return to_dataset(rows)


def replayed(
    config: ReplayConfig, tokens: int, block_size: int, tokenizer: PreTrainedTokenizerBase, seed: int
) -> Dataset:
    """Return ⌊λ · tokens / block_size⌉ blocks of pre-training texts (R15), drawn by ``seed``.

    The texts are shuffled, joined and cut as :mod:`reproalign.ama.align.packing` does; no more of them are tokenised
    than are needed.

    Args:
        config: files, column, λ.
        tokens: of the rows that are aligned on.
        block_size: tokens of a block.
        tokenizer: of the model.
        seed: of the order.

    Raises:
        UserError: if there are too few texts, if λ asks for less than a block, or a row has no text.
    """
    texts: list[str] = []
    for path in find_files(config.rows, "replay.rows"):
        for row in read_local(path):
            text = row.values.get(config.column)
            if row.problem or not isinstance(text, str):
                what = row.problem or f"no text in column '{config.column}'; set replay.column"
                raise UserError(f"replay.rows: {row.place}: {what}")
            texts.append(text)
    assert config.ratio is not None  # check_options
    count = round(config.ratio * tokens / block_size)
    if count < 1:
        raise UserError(
            f"replay.ratio={config.ratio} of {tokens} tokens is less than a block of {block_size}; raise it, or set a "
            "smaller block_size"
        )
    order = np.random.default_rng(seed).permutation(len(texts))
    found = to_dataset(islice(blocks([texts[place] for place in order], tokenizer, block_size), count))
    if len(found) < count:
        raise UserError(
            f"replay.rows: {len(texts)} texts fill {len(found)} blocks of {block_size} tokens, and replay.ratio="
            f"{config.ratio} of {tokens} tokens needs {count}; give more texts, or a smaller ratio"
        )
    return found


def _prompt(entry: Entry) -> Any:
    """Return what entries of one prompt have in common: the turns or the text before the answer, or a whole text."""
    return entry if isinstance(entry, str) else entry[:-1]


def _text(entry: Entry, tokenizer: PreTrainedTokenizerBase, rules: TextRules) -> LearnedText:
    if not isinstance(entry, list):
        return entry
    if rules.loss_on == "response":
        return prompt_text(tokenizer, entry[:-1], rules.layout), _response(entry, tokenizer, rules)
    if rules.layout in TURN_MARKS:
        return transcript(entry, rules.layout, rules.response_separator)
    return render(tokenizer, entry)


def _response(dialogue: list[Message], tokenizer: PreTrainedTokenizerBase, rules: TextRules) -> str:
    if rules.layout in TURN_MARKS:
        return f"{SEPARATORS[rules.response_separator]}{dialogue[-1]['content']}"
    return render_completion(tokenizer, dialogue[:-1], dialogue[-1:], alone=False, generation=True)


def _counted(rows: Dataset, prefix: str) -> dict[str, int]:
    labels = rows.with_format("numpy")["labels"]
    tokens = sum(len(row) for row in labels)
    supervised = sum(int((row[1:] != IGNORED).sum()) for row in labels)
    return {f"{prefix}sequences": len(rows), f"{prefix}tokens": tokens, f"{prefix}supervised_tokens": supervised}
