"""The rows whose likelihood is maximised: D_θ or labelled answers, one by one or joined into blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from reproalign.ama.align.packing import LearnedText, pack
from reproalign.common.data.reading import read_local
from reproalign.common.data.records import Message, RowError, column, messages
from reproalign.common.errors import UserError
from reproalign.common.generation.samples import find, read_selected
from reproalign.common.text.collate import IGNORED
from reproalign.common.text.prompts import prompt_text
from reproalign.common.text.templates import SEPARATORS, render_completion
from reproalign.common.text.tokenize import Encoder, TokenRules, begins_with_bos, split
from reproalign.common.training.sft import tokenize_responses

D_THETA = "d_theta.jsonl"
LABELLED = "labelled.jsonl"
PLAIN = "plain"


@dataclass(frozen=True)
class TokenRow:
    """Token ids, and which of them count.

    Attributes:
        ids: of the text.
        labels: the same where a token's likelihood counts, else IGNORED.
    """

    ids: Sequence[int]
    labels: Sequence[int]

    @property
    def tokens(self) -> int:
        """How many count; the first token of a text has nothing that predicts it."""
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass(frozen=True)
class Form:
    """How a dialogue becomes rows; the fields are AdaptConfig's of the same names."""

    layout: str
    response_separator: str
    loss_on: str
    packing: str
    block_size: int
    max_length: int


def read_dialogues(path: str, objective: str, max_rows: int | None) -> list[list[Message]]:
    """Read D_θ (rows of ``messages``, as ``ama collect`` writes them), or rows of ``prompt`` and ``response``.

    Raises:
        UserError: for a file that is missing, empty, or has a row of another form.
    """
    if objective == "labelled":
        return _read_labelled(find(path, LABELLED, "rows"))[:max_rows]
    advice = "give a run of `ama collect`, or set objective=labelled for rows of prompt and response"
    return read_selected(find(path, D_THETA, "rows"), advice=advice)[:max_rows]


def make_rows(dialogues: Sequence[list[Message]], tokenizer: PreTrainedTokenizerBase, form: Form) -> list[TokenRow]:
    """Tokenise dialogues; with ``packing=blocks`` they are joined and cut as LMFlow does.

    Raises:
        UserError: if they fill no block, or nothing of them counts.
    """
    if not dialogues:
        return []
    if form.packing == "blocks":
        packed = pack([_text(turns, tokenizer, form) for turns in dialogues], tokenizer, form.block_size, key="rows")
        rows = [TokenRow(row["input_ids"], row["labels"]) for row in packed]
    elif form.layout == PLAIN:
        rows = [_plain_row(turns, tokenizer, form.max_length) for turns in dialogues]
    else:
        tokenized = tokenize_responses(
            dialogues,
            tokenizer,
            layout=form.layout,
            max_length=form.max_length,
            response_separator=form.response_separator,
        )
        rows = [TokenRow(row["input_ids"], row["labels"]) for row in tokenized]
    if form.loss_on == "all":
        rows = [TokenRow(row.ids, row.ids) for row in rows]
    rows = [row for row in rows if row.tokens]
    if not rows:
        raise UserError("rows: no token of any response is left to learn from; set a larger max_length or block_size")
    return rows


def _text(turns: list[Message], tokenizer: PreTrainedTokenizerBase, form: Form) -> LearnedText:
    """Return prompt and response for a block: apart if only the response counts, else as one text."""
    if form.layout == PLAIN:
        prompt, response = turns[0]["content"], turns[-1]["content"]
    else:
        prompt = prompt_text(tokenizer, turns[:-1], form.layout)
        if form.layout == "chat":
            response = render_completion(tokenizer, turns[:-1], turns[-1:], alone=False, generation=True)
        else:
            response = f"{SEPARATORS[form.response_separator]}{turns[-1]['content']}"
    return prompt + response if form.loss_on == "all" else (prompt, response)


def _plain_row(turns: list[Message], tokenizer: PreTrainedTokenizerBase, max_length: int) -> TokenRow:
    """Return a prompt continued by its response, without markers; an over-long one loses the prompt's beginning."""
    encoder = Encoder(tokenizer)
    prompt, response = turns[0]["content"], turns[-1]["content"]
    rules = TokenRules(None, None, max_length, max_length)
    whole = encoder(prompt + response)
    head, tail = split(rules, encoder(prompt), whole, lambda: encoder.continuation(response))
    first = [int(tokenizer.bos_token_id)] if begins_with_bos(tokenizer) else []  # type: ignore[arg-type]
    tail = tail[: max_length - 1]
    head = [*first, *head][-(max_length - len(tail)) :]
    return TokenRow([*head, *tail], [*[IGNORED] * len(head), *tail])


def _read_labelled(path: Path) -> list[list[Message]]:
    dialogues = []
    for row in read_local(path):
        if row.problem:
            raise UserError(f"{row.place}: {row.problem}")
        try:
            prompt = row.values.get("prompt")
            turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else messages(row.values, "prompt")
            response = column(row.values, "response")
            if not isinstance(response, str) or not response:
                raise RowError("column 'response' must be a text that is not empty")
            dialogues.append([*turns, {"role": "assistant", "content": response}])
        except RowError as error:
            raise UserError(f"{row.place}: {error}") from error
    return dialogues
