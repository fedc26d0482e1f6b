"""Rows of pairs, by an encoder in place of a tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from reproalign.common.data.tokenize import Rules, join_row


def tokenize_row(
    encode: Callable[[str], list[int]],
    prompt: str,
    chosen: str,
    rejected: str,
    rules: Rules,
    *,
    continuation: Callable[[str], list[int]] | None = None,
    is_blank: Callable[[Sequence[int]], bool] = lambda ids: not ids,
) -> dict[str, Any]:
    """Tokenise one pair as :func:`reproalign.common.data.prepare.tokenize_pairs` does a batch of them.

    Args:
        encode: text to ids, without special tokens.
        prompt: rendered prompt.
        chosen: rendered chosen response.
        rejected: rendered rejected response.
        rules: boundary, special tokens, lengths.
        continuation: encodes a text that continues another; default ``encode``.
        is_blank: says whether ids are white space.
    """
    parts = {"chosen": (encode(prompt + chosen), chosen), "rejected": (encode(prompt + rejected), rejected)}
    return join_row(encode(prompt), parts, rules, continuation=continuation or encode, is_blank=is_blank)
