"""TRL's preference format: your own pairs."""

from __future__ import annotations

from typing import Any

from reproalign.common.data.records import Prompt, RowError, Text, column, messages
from reproalign.common.data.sources.registry import source


@source("preference", "chosen", "rejected")
def preference(row: dict[str, Any]) -> Prompt:
    """TRL's preference format. Columns: chosen and rejected, with prompt (explicit) or with it inside (implicit), as
    text or as messages; optional score_chosen and score_rejected, prompt_id, source, domain.
    """
    differ = False
    if isinstance(column(row, "chosen"), str):
        prompt, chosen, rejected = _standard(row)
    else:
        prompt, chosen, rejected = _conversational(row)
        differ = row["chosen"][:-1] != row["rejected"][:-1]
    scores = [row.get(f"score_{side}") for side in ("chosen", "rejected")]
    return Prompt(
        prompt,
        [chosen, rejected],
        scores=[] if scores == [None, None] else scores,
        pairs=[(0, 1)],
        id=row.get("prompt_id"),
        source=row.get("source"),
        domain=row.get("domain"),
        extras={"prompts_differ": differ},
    )


def _standard(row: dict[str, Any]) -> tuple[Text, Text, Text]:
    chosen, rejected = row["chosen"], column(row, "rejected")
    if not isinstance(rejected, str):
        raise RowError("'chosen' is text but 'rejected' is not")
    prompt = row.get("prompt")  # None: columns of other rows in the file, as Parquet fills them in
    if prompt is not None:
        if not isinstance(prompt, str):
            raise RowError("'chosen' is text but 'prompt' is not")
        return prompt, chosen, rejected
    # Implicit prompt: what both share, up to the last white space so that no word is cut in two.
    shared = next(
        (index for index, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b),
        min(len(chosen), len(rejected)),
    )
    cut = max((chosen.rfind(space, 0, shared) + 1 for space in (" ", "\n")), default=0)
    return chosen[:cut], chosen[cut:], rejected[cut:]


def _conversational(row: dict[str, Any]) -> tuple[Text, Text, Text]:
    chosen, rejected = messages(row, "chosen"), messages(row, "rejected")
    if isinstance(row.get("prompt"), list):
        return messages(row, "prompt"), chosen, rejected
    if len(chosen) < 2:
        raise RowError("'chosen' has no turn before the response, and there is no 'prompt' of messages")
    return chosen[:-1], chosen[-1:], rejected[-1:]
