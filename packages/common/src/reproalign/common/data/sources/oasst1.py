"""OpenAssistant's trees of messages: a prompt for every turn of a user, with its ranked replies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any

from reproalign.common.data.reading import Row
from reproalign.common.data.records import Message, Prompt, RowError, assistant, number, text_of
from reproalign.common.data.sources.registry import source

ROLES = {"prompter": "user", "assistant": "assistant"}


def as_trees(rows: Iterable[Row]) -> Iterator[Row]:
    """Put messages into trees, one for each root: ``{"root": message}``, each message with its ``replies``.

    Bad messages are handed on with their problem; messages without a path from a root are left out.
    """
    messages: list[tuple[str, dict[str, Any]]] = []
    replies: dict[str | None, list[dict[str, Any]]] = defaultdict(list)
    for index, row in enumerate(rows):
        try:
            if row.problem:
                raise RowError(row.problem)
            found = [*_walk(row.values["prompt"], index)] if "prompt" in row.values else [_message(row.values, None)]
        except RowError as error:
            yield Row(row.place, {}, str(error))
            continue
        for message in found:
            message["row"] = len(messages)
            messages.append((row.place, message))
            replies[message["parent_id"]].append(message)
    for _, message in messages:
        message["replies"] = replies.get(message["message_id"], [])
    for place, message in messages:
        if message["parent_id"] is None:
            yield Row(place, {"root": message})


@source(
    "oasst1",
    *("message_id", "role", "text"),
    hub="OpenAssistant/oasst1",
    splits=("train", "validation"),
    gather=as_trees,
)
def oasst1(row: dict[str, Any]) -> list[Prompt]:
    """OpenAssistant's dialogues, one message a row. Columns: message_id, parent_id (null: root), text, role (prompter
    or assistant); optional lang, rank (0 is best; null: not ranked), message_tree_id.

    A tree's prompts stand in depth-first order, each with all replies of an assistant in the order of the rows. Scores
    are negative ranks. ``extras``: ``languages`` of the path, ``reply_languages`` and ``rows``, the place of each
    reply among all messages.
    """
    prompts = []
    waiting: list[tuple[list[Message], frozenset[str], dict[str, Any]]] = [([], frozenset(), row["root"])]
    while waiting:
        before, languages, node = waiting.pop()
        turns = [*before, {"role": ROLES[node["role"]], "content": node["text"]}]
        path = languages | {node["lang"]}
        waiting += [(turns, path, reply) for reply in reversed(node["replies"])]
        replies = [reply for reply in node["replies"] if reply["role"] == "assistant"]
        if replies or node["role"] == "prompter":
            prompts.append(
                Prompt(
                    turns,
                    [[assistant(reply["text"])] for reply in replies],
                    scores=[None if reply["rank"] is None else -reply["rank"] for reply in replies],
                    extras={
                        "languages": path,
                        "reply_languages": [reply["lang"] for reply in replies],
                        "rows": [reply["row"] for reply in replies],
                    },
                )
            )
    return prompts


@source("oasst1_trees", "message_tree_id", "prompt", gather=as_trees)
def oasst1_trees(row: dict[str, Any]) -> list[Prompt]:
    """OpenAssistant's tree files. Columns: prompt, the root, a message as :func:`oasst1` has them with ``replies``."""
    return oasst1(row)


def english(prompts: Iterable[Prompt]) -> list[Prompt]:
    """Return the prompts whose turns are all English, with their English replies alone."""
    found = []
    for prompt in prompts:
        if prompt.extras["languages"] == {"en"}:
            kept = [place for place, language in enumerate(prompt.extras["reply_languages"]) if language == "en"]
            responses, scores, rows = (
                [values[place] for place in kept] for values in (prompt.responses, prompt.scores, prompt.extras["rows"])
            )
            found.append(Prompt(prompt.messages, responses, scores=scores, extras={"rows": rows}))
    return found


def _walk(root: Any, row: int) -> Iterator[dict[str, Any]]:
    """Yield the messages of a tree; one without an id gets that of its place in the row."""
    waiting: list[tuple[Any, str | None]] = [(root, None)]
    for place in count():
        if not waiting:
            return
        node, parent = waiting.pop(0)
        if not isinstance(node, dict):
            raise RowError("'prompt' and each of its 'replies' must be a message")
        message = _message({"message_id": f"row {row}, message {place}", **node}, parent)
        yield message
        waiting += [(reply, message["message_id"]) for reply in node.get("replies") or []]


def _message(row: dict[str, Any], parent: str | None) -> dict[str, Any]:
    message: dict[str, Any] = {name: text_of(row, name) for name in ("message_id", "text", "role")}
    if message["role"] not in ROLES:
        raise RowError(f"role={message['role']!r} must be prompter or assistant")
    if not message["text"].strip():
        raise RowError("'text' is empty")
    rank = row.get("rank")
    return {
        **message,
        "lang": row.get("lang") or "en",
        "parent_id": parent or row.get("parent_id"),
        "rank": None if rank is None else number("rank", rank),
    }
