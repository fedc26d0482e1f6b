"""The first rows of a run as the model reads them: tokens, what the loss is on, BOS and EOS, and a hash of them.

Two runs whose hashes agree begin with the same tokens and the same loss mask, whatever template, boundary rule or
truncation they were told to use.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from reproalign.common.errors import PreviewedError
from reproalign.common.files import sha256_json
from reproalign.common.mappings import flatten
from reproalign.common.records import Run
from reproalign.common.text.collate import IGNORED

HASHED = 3  # rows that the hash is of
WIDTH = 78
LEGEND = "+: the loss is on these tokens; -: it is not; |: between two tokens; ⏎: a line feed"
SHOW: ContextVar[int | None] = ContextVar("rows to show instead of training", default=None)


@dataclass(frozen=True)
class Part:
    """One sequence of a row.

    Attributes:
        name: ``chosen``, ``rejected``, ``KL``, ``response 1``; empty for the only one.
        ids: its tokens.
        trained: for each token whether the loss is on it; None where it is on a score of the whole.
    """

    name: str
    ids: list[int]
    trained: list[bool] | None


def used_rows(run: Run, tokenizer: PreTrainedTokenizerBase, rows: Any) -> None:
    """Record a hash of the first training rows; with :data:`SHOW` set, print rows and end.

    Args:
        run: the open record.
        tokenizer: that made the tokens.
        rows: tokenised data set: ``*input_ids`` with ``*prompt_length`` or ``labels``, a list of ids or of several.

    Raises:
        PreviewedError: after rows were printed.
    """
    if run.is_main:
        first = [parts(rows[index]) for index in range(min(HASHED, len(rows)))]
        digest = sha256_json([[[part.name, part.ids, part.trained] for part in row] for row in first])
        run.set("tokens", {"rows": len(first), "sha256": digest})
        count = SHOW.get()
        if count is not None:
            print(LEGEND, end="\n\n")
            limits = {key: value for key, value in flatten(run.record["config"]).items() if key.endswith("max_length")}
            for number in range(min(count, len(rows))):
                for part in parts(rows[number]):
                    name = f", {part.name}" if part.name else ""
                    print(f"row {number + 1} of {len(rows)}{name}: {describe(part, tokenizer, limits)}")
                    print("\n".join(lines(part, tokenizer)), end="\n\n")
            print(f"SHA-256 of the first {len(first)} rows: {digest}")
            raise PreviewedError


def parts(row: Any) -> list[Part]:
    """Return the sequences of a tokenised row, or of the items that it consists of; the prompt if there is no more."""
    if isinstance(row, list):
        return [
            replace(part, name=f"item {number}, {part.name}") if len(row) > 1 else part
            for number, item in enumerate(row, start=1)
            for part in parts(item)
        ]
    found = []
    keys = [key for key in row if key.endswith("input_ids")]
    for key in [key for key in keys if not key.startswith("prompt_")] or keys:
        prefix = key.removesuffix("input_ids")
        if row[key] and isinstance(row[key][0], Sequence):
            found += [
                Part(f"response {place}", [int(token) for token in ids], None)
                for place, ids in enumerate(row[key], start=1)
            ]
            continue
        ids = [int(token) for token in row[key]]
        trained = None
        if f"{prefix}labels" in row:
            trained = [label != IGNORED for label in row[f"{prefix}labels"]]
        elif f"{prefix}prompt_length" in row:
            trained = [place >= row[f"{prefix}prompt_length"] for place in range(len(ids))]
        elif "completion_mask" in row:
            trained = [bool(value) for value in row["completion_mask"]]
        found.append(Part(prefix.rstrip("_"), ids, trained))
    return found


def describe(part: Part, tokenizer: PreTrainedTokenizerBase, limits: Mapping[str, Any]) -> str:
    """Say in a line how long a sequence is, what the loss is on, and how it begins and ends."""
    told = [f"{len(part.ids)} tokens"]
    told.append("read whole" if part.trained is None else f"loss on {sum(part.trained)}")
    for name, token in (("BOS", tokenizer.bos_token_id), ("EOS", tokenizer.eos_token_id)):
        count = part.ids.count(token) if token is not None else 0
        told.append(f"{name}: {count or 'none'}" if token is not None else f"no {name}")
    if part.ids and part.ids[-1] == tokenizer.eos_token_id:
        told.append("ends with EOS" + (", trained" if part.trained and part.trained[-1] else ""))
    told += [f"fills {key}={limit}" for key, limit in limits.items() if limit == len(part.ids)]
    return "; ".join(told)


def lines(part: Part, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Lay a sequence out in lines: ``+`` before tokens that the loss is on, ``-`` before others, ``|`` between tokens.

    A line ends where the loss begins or ends, and behind a line feed of the text, which is shown as ``⏎``.
    """
    made: list[str] = []
    for trained, run_of_tokens in _runs(part):
        sign = " " if trained is None else "+" if trained else "-"
        text = "|".join(_text(token, tokenizer) for token in run_of_tokens)
        for line in filter(None, text.replace("⏎|", "⏎\n").split("\n")):
            made += textwrap.wrap(
                line,
                WIDTH,
                initial_indent=f"{sign} ",
                subsequent_indent=f"{sign} ",
                drop_whitespace=False,
                break_on_hyphens=False,
            )
    return made


def _runs(part: Part) -> Iterable[tuple[bool | None, list[int]]]:
    """Yield stretches of tokens with or without the loss."""
    if part.trained is None:
        yield None, part.ids
        return
    start = 0
    for place in range(1, len(part.ids) + 1):
        if place == len(part.ids) or part.trained[place] != part.trained[start]:
            yield part.trained[start], part.ids[start:place]
            start = place


def _text(token: int, tokenizer: PreTrainedTokenizerBase) -> str:
    raw = str(tokenizer.convert_ids_to_tokens(token))
    text = str(tokenizer.decode([token]))
    if raw.startswith("▁"):  # decoded alone it would lose the space that it stands for
        text = raw.replace("▁", " ")
    return (raw if "\ufffd" in text or not text else text).replace("\n", "⏎")
