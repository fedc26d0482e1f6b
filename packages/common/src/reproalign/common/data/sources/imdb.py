"""IMDb's film reviews, and pairs of continuations of their beginnings."""

from __future__ import annotations

from typing import Any

from reproalign.common.data.records import Prompt, RowError, assistant, text_of, user
from reproalign.common.data.sources.registry import source


@source("imdb", "text", hub="stanfordnlp/imdb")
def imdb(row: dict[str, Any]) -> Prompt:
    """Film reviews, or any texts: prompts without responses. Column: text."""
    text = text_of(row, "text")
    if not text.strip():
        raise RowError("'text' must not be blank")
    return Prompt(text, [])


@source(
    "imdb_sentiment",
    *("text", "chosen", "rejected"),
    hub="insub/imdb_prefix20_forDPO_gpt2-large-imdb-FT_siebert_sentiment-roberta-large-english",
)
def imdb_sentiment(row: dict[str, Any]) -> Prompt:
    """Beginnings of film reviews, each with two continuations that a sentiment classifier ranked.

    Columns: text (the beginning), chosen and rejected, which repeat it. ``radpo pairs`` makes such rows.
    """
    text = text_of(row, "text")
    sides = [text_of(row, name) for name in ("chosen", "rejected")]
    for name, side in zip(("chosen", "rejected"), sides, strict=True):
        if not side.startswith(text):
            raise RowError(f"'{name}' must begin with 'text'")
    responses = [[assistant(side.removeprefix(text).strip())] for side in sides]
    return Prompt([user(text)], responses, pairs=[(0, 1)])
