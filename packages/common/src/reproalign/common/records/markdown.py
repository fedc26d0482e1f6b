"""Pieces of Markdown for cards, without anybody's private paths."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

# An absolute path, or one from a home folder, up to its last part; the slashes of a URL are not meant.
_PRIVATE = re.compile(r"(?<![\w.:/~-])~?/(?:[^\s'\"\[\]{}(),:=/]+/)*(?=[^\s'\"\[\]{}(),:=/])")


def public(text: str) -> str:
    """Return ``text`` with absolute paths, and those from a home folder, cut to their last part: ``…/pairs.jsonl``."""
    return _PRIVATE.sub("…/", text)


def public_values(value: Any) -> Any:
    """Return plain values with every path in them as :func:`public` has it."""
    if isinstance(value, Mapping):
        return {key: public_values(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [public_values(entry) for entry in value]
    if isinstance(value, str) and value.startswith(("/", "~")):
        return f"…/{Path(value).name}"  # with whatever spaces it has
    return public(value) if isinstance(value, str) else value


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table of Markdown; empty without rows."""
    lines = ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    ruled = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*ruled, *lines]) if lines else ""


def yaml_block(values: Mapping[str, Any]) -> str:
    """Return values as a block of YAML, without private paths."""
    import yaml

    text = yaml.safe_dump(public_values(values), sort_keys=False, allow_unicode=True).rstrip()
    return f"```yaml\n{text}\n```"


def code(text: str) -> str:
    """Return text in backticks."""
    return f"`{text}`" if text else ""


def number(value: Any) -> str:
    """Return a measured value in four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def duration(seconds: float | None) -> str:
    """Return a time in hours and minutes, or minutes and seconds."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
