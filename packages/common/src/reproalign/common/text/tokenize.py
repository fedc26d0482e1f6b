"""From a rendered prompt and response to token ids with a known boundary.

Two rules. ``exact``: prompt ids hold prompt text alone and response ids response text alone, whatever the tokenizer
would merge across the boundary. ``released`` (TRL 0.7.7, which the papers' code used): tokenise the whole and cut after
as many tokens as the prompt has, one fewer if these differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from reproalign.common.config.text import PairTextConfig
from reproalign.common.errors import UserError
from reproalign.common.options.check import check

Ids = list[int]


@dataclass(frozen=True)
class TokenRules:
    """How pairs are tokenised; the fields of the same names in ``PairTextConfig``, with the special token ids.

    Raises:
        UserError: for a value that these do not allow.
    """

    bos_id: int | None
    eos_id: int | None
    max_length: int
    max_prompt_length: int
    truncation: str = "keep_end"
    boundary: str = "exact"
    special_tokens: str = "dedupe"
    add_bos: bool = True  # dedupe: whether this tokenizer begins texts with BOS at all

    def __post_init__(self) -> None:
        words = {name: value for name, value in vars(self).items() if isinstance(value, str)}
        check(PairTextConfig, words, "text.")


class Encoder:
    """A tokenizer without its special tokens or with them, and how it encodes a text that continues another."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def __call__(self, text: str) -> Ids:
        """Encode ``text``."""
        return list(self.tokenizer.encode(text, add_special_tokens=False, verbose=False))

    def batch(self, texts: Sequence[str]) -> list[Ids]:
        """Encode many texts at once."""
        return [list(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]]

    def with_own_tokens(self, texts: Sequence[str], *, once: bool) -> list[Ids]:
        """Encode whole texts with the special tokens that the tokenizer adds by itself.

        Args:
            texts: rendered dialogues; a chat template may have put BOS into them.
            once: such a text gets no second BOS.
        """
        bos = self.tokenizer.bos_token_id
        rows = [list(ids) for ids in self.tokenizer(list(texts), verbose=False)["input_ids"]]
        if not once or bos is None:
            return rows
        return [ids[1:] if ids[:2] == [bos, bos] else ids for ids in rows]

    def continuation(self, text: str) -> Ids:
        """Encode ``text`` as it stands in the middle of another: without the prefix space some tokenizers add.

        An anchor is put before it and taken off again; several are tried, since one may merge with the text.
        """
        if not self._adds_prefix:
            return self(text)
        for anchor in ("\n", "a", ".", "0", ")"):
            head, whole = self(anchor), self(anchor + text)
            if whole[: len(head)] == head:
                return whole[len(head) :]
        return self(text)

    def is_blank(self, ids: Sequence[int]) -> bool:
        """Say whether ``ids`` are white space only."""
        return not str(self.tokenizer.decode(list(ids))).strip()

    @cached_property
    def _adds_prefix(self) -> bool:
        return bool(self.tokenizer.decode(self("a") + self("b")) != "ab")


def split(rules: TokenRules, prompt_ids: Ids, whole_ids: Ids, continuation: Callable[[], Ids]) -> tuple[Ids, Ids]:
    """Cut a tokenised whole into prompt and response ids.

    Args:
        rules: ``boundary`` is read.
        prompt_ids: the prompt, tokenised by itself.
        whole_ids: prompt and response, tokenised as one text.
        continuation: gives the response, tokenised as a continuation; called only when tokens cross the boundary.
    """
    cut = len(prompt_ids)
    if whole_ids[:cut] == prompt_ids:
        return prompt_ids, whole_ids[cut:]
    if rules.boundary == "exact":
        return prompt_ids, continuation()
    cut = max(cut - 1, 0)
    return whole_ids[:cut], whole_ids[cut:]


def add_special_tokens(
    rules: TokenRules, prompt: Ids, response: Ids, is_blank: Callable[[Sequence[int]], bool] = lambda ids: not ids
) -> tuple[list[int | None], list[int | None]]:
    """Put BOS before the prompt and EOS after the response.

    ``released``: always, so that templates which contain them give doubled tokens. ``dedupe``: BOS once and only for a
    tokenizer that begins texts with it; the response ends with exactly one EOS, and white space after it is dropped.
    """
    if rules.special_tokens == "released":
        return [rules.bos_id, *prompt], [*response, rules.eos_id]
    head: list[int | None] = [*prompt]
    if rules.bos_id is not None and rules.add_bos and prompt[:1] != [rules.bos_id]:
        head = [rules.bos_id, *prompt]
    if rules.special_tokens == "dedupe" and rules.bos_id is not None:
        while len(head) > 1 and head[0] == head[1] == rules.bos_id:
            head = head[1:]
    tail = [*response]
    if rules.eos_id in tail:
        last = len(tail) - 1 - tail[::-1].index(rules.eos_id)  # type: ignore[arg-type]
        if is_blank(tail[last + 1 :]):
            tail = tail[:last]
            while tail and tail[-1] == rules.eos_id:
                tail.pop()
    return head, [*tail, rules.eos_id]


def truncate(
    rules: TokenRules, prompt: list[Any], response: list[Any], longest_response: int
) -> tuple[list[Any], list[Any]]:
    """Shorten a pair's side to ``max_length``.

    First the prompt to ``max_prompt_length``, if prompt and the pair's longer response do not fit. Then the response:
    ``released`` to ``max_length - max_prompt_length`` if prompt and the *longer* response still do not fit (so a short
    response may be cut needlessly, and the total may exceed ``max_length``); ``exact`` to what is left.
    """
    if len(prompt) + longest_response > rules.max_length:
        kept = rules.max_prompt_length
        prompt = prompt[:kept] if rules.truncation == "keep_start" else prompt[-kept:]
    if rules.boundary == "exact":
        return prompt, response[: rules.max_length - len(prompt)]
    if len(prompt) + longest_response > rules.max_length:
        response = response[: rules.max_length - rules.max_prompt_length]
    return prompt, response


def join_row(
    prompt_ids: Ids,
    responses: Mapping[str, tuple[Ids, str]],
    rules: TokenRules,
    *,
    continuation: Callable[[str], Ids],
    is_blank: Callable[[Sequence[int]], bool],
) -> dict[str, Any]:
    """Tokenise one prompt and its responses.

    Args:
        prompt_ids: the rendered prompt, tokenised without special tokens.
        responses: by name (``chosen``, ``rejected``), prompt and response tokenised as one text, and the response.
        rules: boundary, special tokens, lengths.
        continuation: encodes a text that continues another.
        is_blank: says whether ids are white space.

    Returns:
        ``<name>_input_ids`` and ``<name>_prompt_length`` of every response, ``prompt_input_ids``, and ``whole``: the
        tokens of the longest side before any was cut off.
    """
    sides = []
    for whole, response in responses.values():
        parts = split(rules, prompt_ids, whole, partial(continuation, response))
        sides.append(add_special_tokens(rules, *parts, is_blank))
    longest = max(len(response) for _, response in sides)
    standalone, _ = add_special_tokens(rules, prompt_ids, [], is_blank)
    row: dict[str, Any] = {"prompt_input_ids": truncate(rules, standalone, [], longest)[0]}
    row["whole"] = max(len(head) + len(tail) for head, tail in sides)
    for name, (head, tail) in zip(responses, sides, strict=True):
        head, tail = truncate(rules, head, tail, longest)
        row[f"{name}_input_ids"] = head + tail
        row[f"{name}_prompt_length"] = len(head)
    return row


def begins_with_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Say whether the tokenizer puts BOS before a text by itself."""
    return tokenizer.bos_token_id is not None and tokenizer.encode("a")[:1] == [tokenizer.bos_token_id]


def check_lengths(max_length: int, max_prompt_length: int) -> None:
    """Refuse lengths that leave no room for a response.

    Raises:
        UserError: naming both.
    """
    if max_prompt_length >= max_length:
        raise UserError(f"text.max_prompt_length={max_prompt_length} must be below text.max_length={max_length}")
