"""Rows to fine-tune on: dialogues, texts, and couples of prompt and response, from files of several forms."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from reproalign.ama.align.packing import LearnedText
from reproalign.common.data.reading import Row, local_path, read_local
from reproalign.common.data.records import Message, RowError, column, messages
from reproalign.common.errors import UserError
from reproalign.common.records.handed_on import intact

Entry = list[Message] | LearnedText  # turns; or a text; or a prompt and its response, both as they stand

LISTS = ("pool.jsonl", "selected.jsonl", "sft.jsonl")  # what a folder of a run is read for, the first that is there
SPEAKERS = {"human": "user", "user": "user", "system": "system"}
SPEAKERS |= dict.fromkeys(("gpt", "chatgpt", "assistant", "bing", "bard"), "assistant")


def read_rows(files: Sequence[str], key: str) -> tuple[list[Entry], int]:
    """Read every row of every file.

    A row has ``messages``; or ShareGPT's ``conversations``; or Alpaca's ``instruction``, ``input`` and ``output``; or
    LMFlow's ``input`` and ``output``; or ``text``. LMFlow's files ({type, instances}) are read as they are. A folder
    stands for the rows that a run wrote into it, or for all of its ``.json`` files.

    Args:
        files: paths, or folders of runs.
        key: the option that names them.

    Returns:
        The rows in order, and how many conversations were skipped because they hold no answer.

    Raises:
        UserError: for a file that cannot be read, and a row of none of these forms.
    """
    entries: list[Entry] = []
    skipped = 0
    for path in find_files(files, key):
        for row in _read(path):
            if row.problem:
                raise UserError(f"{row.place}: {row.problem}")
            try:
                entry = _entry(row.values)
            except RowError as error:
                raise UserError(f"{row.place}: {error}") from error
            if entry is None:
                skipped += 1
            else:
                entries.append(entry)
    if not entries and files:
        raise UserError(f"{key}: none of the {skipped} conversations holds an answer to learn")
    return entries, skipped


def find_files(files: Sequence[str], key: str) -> list[Path]:
    """Return the files that paths and folders stand for.

    Raises:
        UserError: if there is none.
    """
    found: list[Path] = []
    for name in files:
        folder = Path(name).expanduser()
        if not folder.is_dir() or (folder / "dataset_info.json").is_file():
            found.append(local_path(name, key=key))
            continue
        written = [folder / item for item in LISTS if (folder / item).is_file()][:1]
        inside = written or sorted(folder.glob("*.json"))
        if not inside:
            raise UserError(f"{key}={name}: the folder has neither {', '.join(LISTS)} nor .json files; name a file")
        found += inside
    return found


def _read(path: Path) -> Iterator[Row]:
    if path.suffix == ".json" and path.is_file():
        intact(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            content = None  # read_local says what is wrong
        if isinstance(content, dict) and isinstance(content.get("instances"), list):
            for number, values in enumerate(content["instances"], start=1):
                problem = None if isinstance(values, dict) else "not a JSON object"
                yield Row(f"{path} instance {number}", values if problem is None else {}, problem)
            return
    yield from read_local(path)


def _entry(row: dict[str, Any]) -> Entry | None:
    forms: dict[str, Callable[[dict[str, Any]], Entry | None]] = {
        "messages": lambda values: messages(values, "messages"),
        "conversations": _conversation,
        "instruction": _instruction,
        "input": lambda values: (_text(values, "input"), _text(values, "output")),
        "text": lambda values: _text(values, "text"),
    }
    for name, form in forms.items():
        if row.get(name) is not None:
            return form(row)
    raise RowError(
        f"a row needs one of the columns {', '.join(forms)}; this one has {', '.join(sorted(row)) or 'none'}"
    )


def _conversation(row: dict[str, Any]) -> list[Message] | None:
    """Return ShareGPT's turns from the first that is no answer to the last answer; None if there is no answer."""
    turns = row["conversations"]
    if not isinstance(turns, list):
        raise RowError("column 'conversations' must be a list of turns")
    found: list[Message] = []
    for turn in turns:
        if not isinstance(turn, dict) or turn.get("from") not in SPEAKERS or not isinstance(turn.get("value"), str):
            raise RowError(f"column 'conversations': a turn needs 'from' ({', '.join(SPEAKERS)}) and 'value' as text")
        found.append({"role": SPEAKERS[turn["from"]], "content": turn["value"]})
    while found and found[0]["role"] == "assistant":
        found.pop(0)
    while found and found[-1]["role"] != "assistant":
        found.pop()
    return found or None


def _instruction(row: dict[str, Any]) -> list[Message]:
    more = row.get("input")
    question = f"{_text(row, 'instruction')}\n\n{more}" if isinstance(more, str) and more else _text(row, "instruction")
    return [{"role": "user", "content": question}, {"role": "assistant", "content": _text(row, "output")}]


def _text(row: dict[str, Any], name: str) -> str:
    value = column(row, name)
    if not isinstance(value, str):
        raise RowError(f"column '{name}' must be text")
    return value
