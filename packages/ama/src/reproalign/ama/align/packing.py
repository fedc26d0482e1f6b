"""Texts as blocks of equal length, as LMFlow tokenises and packs them: the rows of the released trainings.

A text is tokenised with the special tokens that its tokenizer adds by itself (LLaMA's: BOS in front, no EOS behind) and
trained on from its first token to its last, prompt included. A couple of prompt and response is tokenised part by part
without special tokens, and its prompt is not trained on. A group of texts, 1,000 in the release, is joined into one
stream, which is cut every ``block_size`` tokens; what remains at its end is dropped. There is no padding, no mark
between texts, and attention looks across their borders.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from datasets import Dataset, Features, Value
from datasets import Sequence as SequenceFeature
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from reproalign.common.console import track
from reproalign.common.errors import UserError
from reproalign.common.text.collate import IGNORED
from reproalign.common.text.tokenize import Encoder

GROUP = 1000  # texts joined at a time; LMFlow's group_texts_batch_size, 1 with its disable_group_texts
LONGEST_DEFAULT = 1024  # tokens of a block where none are asked for

FEATURES = Features({name: SequenceFeature(Value("int32")) for name in ("input_ids", "labels")})

Block = dict[str, NDArray[np.int32]]
LearnedText = str | tuple[str, str]  # a text, all of which is learned; or a prompt and the response that is learned


def effective_block_size(block_size: int | None, model_max_length: int, *, truncate: bool = True) -> int:
    """Return the tokens of a block: what is asked for, or the model's length up to 1024 where nothing is.

    Args:
        block_size: asked for, in tokens; None: ``min(model_max_length, 1024)``.
        model_max_length: of the tokenizer.
        truncate: a block longer than that is cut down to it; otherwise it stays.
    """
    if block_size is None:
        return min(model_max_length, LONGEST_DEFAULT)
    return min(block_size, model_max_length) if truncate else block_size


def group_texts(columns: Mapping[str, Sequence[Sequence[int]]], block_size: int) -> dict[str, list[list[int]]]:
    """Join the rows of every column and cut the stream into blocks; the remainder is dropped.

    Args:
        columns: rows of token ids by column; of every column as many tokens.
        block_size: tokens of a block, at least 1.

    Returns:
        The blocks by column; none where the stream is shorter than one.
    """
    streams = {name: list(chain.from_iterable(rows)) for name, rows in columns.items()}
    return {
        name: [stream[start : start + block_size] for start in range(0, len(stream) - block_size + 1, block_size)]
        for name, stream in streams.items()
    }


def tokenize_texts(texts: Sequence[LearnedText], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[list[int]]]:
    """Return ``input_ids`` and ``labels`` of texts, or of couples whose first part is not learned (label -100).

    A text to which a chat template gave BOS gets no second one.
    """
    encoder = Encoder(tokenizer)
    plain = [text for text in texts if isinstance(text, str)]
    couples = [text for text in texts if not isinstance(text, str)]
    whole = iter(encoder.with_own_tokens(plain, once=True) if plain else [])
    parts = iter(encoder.batch([part for couple in couples for part in couple]) if couples else [])
    columns: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for text in texts:
        head, tail = ([], next(whole)) if isinstance(text, str) else (next(parts), next(parts))
        columns["input_ids"].append([*head, *tail])
        columns["labels"].append([*[IGNORED] * len(head), *tail])
    return columns


def blocks(
    texts: Sequence[LearnedText], tokenizer: PreTrainedTokenizerBase, block_size: int, *, group_size: int = GROUP
) -> Iterator[Block]:
    """Tokenise texts and yield their blocks (``input_ids`` and ``labels``) as they fill up, in the order of the texts.

    Args:
        texts: whole texts, or prompts with their responses.
        tokenizer: of the model.
        block_size: tokens of a block.
        group_size: texts that are joined at a time; the end of each such group that fills no block is dropped.
    """
    starts = range(0, len(texts), group_size)
    for start in track(starts, "packing"):
        made = group_texts(tokenize_texts(texts[start : start + group_size], tokenizer), block_size)
        for ids, labels in zip(made["input_ids"], made["labels"], strict=True):
            yield {"input_ids": np.array(ids, dtype=np.int32), "labels": np.array(labels, dtype=np.int32)}


def to_dataset(rows: Iterable[Mapping[str, Any]]) -> Dataset:
    """Return rows of ``input_ids`` and ``labels`` as a data set; there may be none."""
    columns: dict[str, list[Any]] = {"input_ids": [], "labels": []}
    for row in rows:
        for name, values in columns.items():
            values.append(row[name])
    return Dataset.from_dict(columns, features=FEATURES)


def pack(
    texts: Sequence[LearnedText],
    tokenizer: PreTrainedTokenizerBase,
    block_size: int | None,
    *,
    group_size: int = GROUP,
    key: str = "rows",
) -> Dataset:
    """Tokenise texts and pack them into blocks.

    Args:
        texts: whole texts, or prompts with their responses.
        tokenizer: of the model.
        block_size: as :func:`effective_block_size` takes it, from 2.
        group_size: texts that are joined at a time, at least 1.
        key: where the texts came from; the error names it.

    Returns:
        Rows of ``input_ids`` and ``labels``, each of the same length, in the order of the texts.

    Raises:
        UserError: if all texts together do not fill one block.
    """
    size = effective_block_size(block_size, tokenizer.model_max_length)
    made = to_dataset(blocks(texts, tokenizer, size, group_size=group_size))
    if not len(made):
        tokens = sum(map(len, tokenize_texts(texts, tokenizer)["input_ids"]))
        raise UserError(
            f"{key}: {len(texts)} texts of {tokens} tokens fill no block of {size} tokens; set a smaller block_size or "
            "packing=none, or give more rows"
        )
    return made
