r"""Perplexities of answers: how an answer is told from its prompt, and what a set of them comes to.

Of an answer with n tokens of losses ℓ_t (nats), given its prompt, L = Σ ℓ_t / n is the mean loss and exp(L) its
perplexity. Of a set of answers

    answer_perplexity              mean of exp(L) over the answers with exp(L) < gate
    answer_perplexity_released     the same sum over *all* answers: one above the gate counts as 0 (MORE's evaluate.py)
    exp_mean_loss                  exp of the mean of L over answers
    perplexity                     exp(Σ ℓ / Σ n), every token counting the same
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from reproalign.common.data.reading import Row, local_path, read_local
from reproalign.common.data.records import RowError
from reproalign.common.data.sources.hh import split_transcript
from reproalign.common.errors import UserError
from reproalign.common.text.collate import IGNORED
from reproalign.common.text.tokenize import Encoder

GATE = 10_000.0
HEADER = "Assistant: "  # opens a reply; the 11 characters that the published files lose


@dataclass(frozen=True)
class AnsweredPrompt:
    """A prompt as text, with the header of its answer, and the answer."""

    prompt: str
    answer: str


def read_answers(path: str, cut: str, limit: int | None) -> list[AnsweredPrompt]:
    r"""Read rows with ``prompt`` and ``answer`` (texts), or with ``chosen``, a transcript that is cut.

    ``reply``: the answer is the whole last reply. ``last_paragraph``: what follows the last blank line, less its first
    11 characters (``Assistant: `` where the reply has one paragraph), and the prompt is the rest with
    ``\n\nAssistant: `` after it; so MORE's files of test answers were made.

    Args:
        path: JSON, JSON lines, Parquet or CSV.
        cut: ``reply`` or ``last_paragraph``; for transcripts.
        limit: the first so many rows; None: all.

    Raises:
        UserError: naming the row that has neither.
    """
    found = []
    for number, row in enumerate(read_local(local_path(path, key="files"))):
        if limit is not None and number >= limit:
            break
        found.append(_answer(row, cut))
    if not found:
        raise UserError(f"files: {path} has no rows; give rows with prompt and answer, or chosen")
    return found


def cut_transcript(text: str, cut: str) -> AnsweredPrompt:
    """Divide a transcript that ends with a reply; see :func:`read_answers`.

    Raises:
        RowError: if it does not end with one.
    """
    turns = split_transcript(text, "chosen")
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise RowError("column 'chosen' must end with an assistant's turn after a prompt")
    if cut == "last_paragraph":
        rest, _, last = text.rpartition("\n\n")
        return AnsweredPrompt(f"{rest}\n\n{HEADER}", last[len(HEADER) :])
    marker = f"\n\n{HEADER.rstrip()}"
    start = text.rindex(marker) + len(marker)
    end = start + (text[start : start + 1] == " ")
    return AnsweredPrompt(f"{text[:start]} ", text[end:])


def answer_tokens(
    answers: Sequence[AnsweredPrompt], tokenizer: PreTrainedTokenizerBase, length: int
) -> list[dict[str, Any]]:
    """Tokenise: ``input_ids`` of the last ``length`` tokens of prompt and answer, ``labels`` ignored for the prompt's.

    Both texts get the special tokens that the tokenizer adds by itself, and as many tokens are ignored as the prompt
    alone has, as in MORE's ``compute_ppl``; where the text's tokens run across the seam, that is one token off.
    """
    encoder = Encoder(tokenizer)
    prompts = encoder.with_own_tokens([row.prompt for row in answers], once=True)
    texts = encoder.with_own_tokens([row.prompt + row.answer for row in answers], once=True)
    rows = []
    for prompt, ids in zip(prompts, texts, strict=True):
        hidden = min(len(prompt), len(ids))
        labels = [IGNORED] * hidden + ids[hidden:]
        rows.append({"input_ids": ids[-length:], "labels": labels[-length:]})
    return rows


def is_measured(row: dict[str, Any]) -> bool:
    """Say whether anything of a tokenised row is predicted: an empty answer has no loss."""
    return any(label != IGNORED for label in row["labels"][1:])


def perplexities(losses: Sequence[float], gate: float = GATE) -> dict[str, float]:
    """Return the measures of answers' mean losses (module docstring) that need no numbers of tokens.

    Losses that are NaN, of answers without a token, and perplexities beyond floats take no part, as in the release's
    ``nanmean``; ``answers_without_loss`` and ``answers_above_gate`` count them. All are finite.

    Args:
        losses: mean loss of each answer, nats per token.
        gate: an answer of this perplexity or a higher one is an outlier.
    """
    known = [loss for loss in losses if not math.isnan(loss)]
    finite = [loss for loss in known if loss < _LARGEST]
    below = [math.exp(loss) for loss in finite if math.exp(loss) < gate]
    metrics = {
        "answers_above_gate": float(len(known) - len(below)),
        "answers_without_loss": float(len(losses) - len(known)),
    }
    if below:
        metrics["answer_perplexity"] = sum(below) / len(below)
    if finite:
        metrics["answer_perplexity_released"] = sum(below) / len(finite)
        metrics["exp_mean_loss"] = math.exp(min(sum(known) / len(known), 700.0))
    return metrics


_LARGEST = math.log(3.4028234663852886e38)  # exp of more is infinite in float32, and infinity times 0 is NaN


def _answer(row: Row, cut: str) -> AnsweredPrompt:
    prompt, answer, chosen = (row.values.get(name) for name in ("prompt", "answer", "chosen"))
    if isinstance(prompt, str) and isinstance(answer, str):
        return AnsweredPrompt(prompt, answer)
    if not isinstance(chosen, str):
        raise UserError(f"{row.place}: {row.problem or 'prompt and answer, or chosen (a transcript), must be texts'}")
    try:
        return cut_transcript(chosen, cut)
    except RowError as error:
        raise UserError(f"{row.place}: {error}") from error
