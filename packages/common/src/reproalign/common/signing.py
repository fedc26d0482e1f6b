"""Small JSON files that carry the SHA-256 of their own content: records, manifests, the state of interrupted work."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reproalign.common.files import sha256_json, write_json

SUM = "sha256"


def signed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``content`` with the SHA-256 of all other entries under ``sha256``."""
    rest = {key: value for key, value in content.items() if key != SUM}
    return {**rest, SUM: sha256_json(rest)}


def is_as_signed(content: Mapping[str, Any]) -> bool:
    """Say whether ``content`` is what was signed; true of what never was, as earlier versions wrote it."""
    return SUM not in content or signed(content)[SUM] == content[SUM]


def write_signed(path: Path, content: Mapping[str, Any]) -> None:
    """Write what :func:`read_signed` reads: the state of work that an interruption may end."""
    write_json(path, signed(content))


def read_signed(path: Path) -> dict[str, Any]:
    """Return what :func:`write_signed` wrote; nothing if there is no such file, or, with a line, if it was altered."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        content = None
    if not isinstance(content, dict) or SUM not in content or not is_as_signed(content):
        print(f"reproalign: {path} was altered; the work that it stands for is done again", file=sys.stderr)
        return {}
    return content
