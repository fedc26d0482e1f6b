"""Token rows that the perplexity and the KL to a reference are measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from reproalign.ama.frontier.respond import Answered
from reproalign.common.data.reading import Row, local_path, read_local
from reproalign.common.data.records import Message, RowError, messages
from reproalign.common.errors import UserError
from reproalign.common.generation.asking import prompt_ids
from reproalign.common.generation.rules import SamplingRules
from reproalign.common.text.collate import IGNORED
from reproalign.common.text.templates import SEPARATORS, TURN_MARKS
from reproalign.common.text.tokenize import Encoder


@dataclass(frozen=True)
class TokenRows:
    """Tokenised rows, and where each is from.

    Attributes:
        tokens: ``input_ids`` and ``labels``, -100 where nothing is measured.
        source: of each row a file and the row's number in it, or the place of a prompt and of a response to it.
    """

    tokens: Dataset
    source: list[tuple[str | int, int]]


@dataclass(frozen=True)
class Text:
    """A text that is measured whole, or a dialogue whose last answer is."""

    file: str  # its name without the suffix
    row: int
    content: str | list[Message]


def read_texts(files: Sequence[str], limit: int | None) -> list[Text]:
    """Read rows with ``text``, or with ``messages`` that end with an assistant's turn.

    Args:
        files: JSON, JSON lines or Parquet.
        limit: the first so many rows of each; None: all.

    Raises:
        UserError: naming the row that has neither.
    """
    found = []
    for file in files:
        for number, row in enumerate(read_local(local_path(file, key="texts"))):
            if limit is not None and number >= limit:
                break
            found.append(Text(Path(file).stem, number, _content(row)))
    return found


def text_rows(texts: Sequence[Text], tokenizer: PreTrainedTokenizerBase, layout: str, length: int) -> TokenRows:
    """Tokenise texts for their loss: of a text every token but the first, of a dialogue those of its last answer.

    A text of more than ``length`` tokens becomes several windows that see nothing of each other; a longer dialogue
    loses the beginning of its prompt. Windows without a token to measure are left out.

    Args:
        texts: of :func:`read_texts`.
        tokenizer: of the model; a text gets the special tokens that it adds by itself.
        layout: of dialogues.
        length: tokens of a row, at least 2.
    """
    encoder = Encoder(tokenizer)
    rows: list[dict[str, Any]] = []
    source: list[tuple[str | int, int]] = []
    for text in texts:
        if isinstance(text.content, str):
            (ids,) = encoder.with_own_tokens([text.content], once=True)
            windows = [ids[start : start + length] for start in range(0, len(ids), length)]
            made: list[dict[str, Any]] = [{"input_ids": window, "labels": window} for window in windows]
        else:
            from reproalign.common.training.sft import tokenize_responses  # brings trl, which takes its time

            made = list(tokenize_responses([text.content], tokenizer, layout=layout, max_length=length))
        kept = [row for row in made if any(label != IGNORED for label in row["labels"][1:])]
        rows += kept
        source += [(text.file, text.row)] * len(kept)
    if not rows:
        raise UserError("texts: no row has two tokens; give rows with more text")
    return TokenRows(Dataset.from_list(rows), source)


def response_rows(
    rows: Sequence[Answered], tokenizer: PreTrainedTokenizerBase, rules: SamplingRules, *, separator: str
) -> TokenRows:
    """Tokenise prompts with their responses for log π(response | prompt); empty responses are left out.

    Args:
        rows: prompts and responses.
        tokenizer: of the model.
        rules: how the model was asked.
        separator: ``space`` or ``none``: between the header of a transcript's answer and the answer.
    """
    encoder = Encoder(tokenizer)
    space = SEPARATORS[separator] if rules.layout in TURN_MARKS else ""
    made, source = [], []
    for place, row in enumerate(rows):
        head = prompt_ids(tokenizer, row.prompt, rules)
        for number, response in enumerate(row.responses):
            tail = encoder.continuation(f"{space}{response}") if response else []
            if tail:
                made.append({"input_ids": [*head, *tail], "labels": [*[IGNORED] * len(head), *tail]})
                source.append((place, number))
    if not made:
        raise UserError("reference: every response is empty, so there is no KL to measure; leave reference out")
    return TokenRows(Dataset.from_list(made), list(source))


def _content(row: Row) -> str | list[Message]:
    text = row.values.get("text")
    if isinstance(text, str) and text.strip():
        return text
    try:
        turns = messages(row.values, "messages")
    except RowError as error:
        raise UserError(f"{row.place}: {row.problem or 'column text or messages is missing or empty'}") from error
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise UserError(f"{row.place}: column 'messages' must end with an assistant's turn after a prompt")
    return turns
