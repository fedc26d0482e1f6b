"""Prompts with any number of scored responses: MORE's own items, and what the verb ``score`` writes."""

from __future__ import annotations

from typing import Any

from reproalign.common.data.records import Prompt, RowError, assistant, column, list_of, messages, user
from reproalign.common.data.sources.registry import source


@source("text-score", "text", "score")
def text_score(row: dict[str, Any]) -> Prompt:
    r"""The items of MORE's release. Columns: text (list of transcripts ``\n\nHuman: …\n\nAssistant: …``), score (list
    of numbers, higher is better; null: missing).
    """
    texts = column(row, "text")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise RowError("'text' must be a list of text")
    return Prompt([], [], scores=list_of(row, "score"), transcripts=texts)


@source("responses", "prompt", "responses", "scores")
def responses(row: dict[str, Any]) -> Prompt:
    """Records of the verb ``score``. Columns: prompt (text or messages), responses (list of text), scores (list of
    numbers, higher is better; null: missing).
    """
    prompt = column(row, "prompt")
    texts = list_of(row, "responses")
    if not all(isinstance(text, str) for text in texts):
        raise RowError("'responses' must be a list of text")
    turns = [user(prompt)] if isinstance(prompt, str) else messages(row, "prompt")
    return Prompt(turns, [[assistant(text)] for text in texts], scores=list_of(row, "scores"))
