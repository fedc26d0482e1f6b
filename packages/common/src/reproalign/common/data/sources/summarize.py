"""OpenAI's comparisons of summaries."""

from __future__ import annotations

from typing import Any

from reproalign.common.data.records import Prompt, RowError, assistant, column, text_of, user
from reproalign.common.data.sources.registry import source


@source(
    "summarize",
    *("info", "summaries", "choice"),
    hub="openai/summarize_from_feedback",
    splits=("train", "validation"),
    data_dir="comparisons",
    revision="refs/convert/parquet",
)
def summarize(row: dict[str, Any]) -> Prompt:
    """Comparisons of summaries. Columns: info (with post, title and subreddit, or article), summaries (two, each with
    text), choice (index of the better one). The prompt is the query of Stiennon et al. (2020), with TL;DR.
    """
    info, summaries, choice = column(row, "info"), column(row, "summaries"), column(row, "choice")
    if not isinstance(summaries, list) or len(summaries) != 2 or choice not in (0, 1):
        raise RowError("there must be two 'summaries', and 'choice' must be 0 or 1")
    if not isinstance(info, dict):
        raise RowError("'info' must be an object with 'post' or 'article'")
    if info.get("post"):
        query = f"SUBREDDIT: r/{info.get('subreddit')}\n\nTITLE: {info.get('title')}\n\nPOST: {info['post']}"
    else:
        query = text_of(info, "article", "info.")
    texts = [text_of(summaries[side], "text", "summaries.").strip() for side in (choice, 1 - choice)]
    return Prompt([user(f"{query}\n\nTL;DR:")], [[assistant(text)] for text in texts], pairs=[(0, 1)])
