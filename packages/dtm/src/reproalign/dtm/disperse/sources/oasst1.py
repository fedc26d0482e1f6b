"""OpenAssistant's trees of messages: the prompt at the root and its best reply."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from reproalign.common.data.reading import Row
from reproalign.common.data.records import RowError
from reproalign.dtm.disperse.sources.alpaca import alpaca_row
from reproalign.dtm.disperse.sources.registry import InstructionRow, Rules, source


def as_trees(rows: Iterable[Row]) -> Iterator[Row]:
    """Put the messages of a tree, which follow each other, under their root: prompt and first replies."""
    for (tree, _), messages in groupby(rows, key=lambda row: (row.values.get("message_tree_id"), row.problem)):
        found = list(messages)
        if found[0].problem:
            yield from found
            continue
        roots = [row.values for row in found if row.values.get("parent_id") is None]
        replies = [row.values for row in found if roots and row.values.get("parent_id") == roots[0].get("message_id")]
        prompt = {**roots[0], "replies": replies} if len(roots) == 1 else None
        yield Row(found[0].place, {"message_tree_id": tree, "prompt": prompt})


@source("oasst1_trees", ["message_tree_id", "prompt"])
def oasst1_trees(values: dict[str, Any], rules: Rules) -> InstructionRow:
    """OpenAssistant's tree files. Columns: prompt, a message with ``replies``; the reply of the best rank is taken."""
    prompt = values.get("prompt")
    if not isinstance(prompt, dict):
        raise RowError("the tree has no single root (the messages of a tree must follow each other)")
    replies = [
        reply for reply in prompt.get("replies") or [] if isinstance(reply, dict) and reply.get("role") == "assistant"
    ]
    if not replies:
        raise RowError("the prompt has no reply")
    best = min(replies, key=lambda reply: (reply.get("rank") is None, reply.get("rank") or 0))
    return alpaca_row(prompt.get("text"), best.get("text"))


@source("oasst1", ["message_id", "parent_id", "message_tree_id"], hub="OpenAssistant/oasst1", group=as_trees)
def oasst1(values: dict[str, Any], rules: Rules) -> InstructionRow:
    """OpenAssistant's message rows. Columns: message_id, parent_id, message_tree_id, role, text, rank."""
    return oasst1_trees(values, rules)
