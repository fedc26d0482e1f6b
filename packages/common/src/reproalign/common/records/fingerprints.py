"""What identifies weights and data: a hash of their content, or the commit of a repository that holds them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reproalign.common.manifests import digest_of

_COMMIT = re.compile(r"(.+@)?[0-9a-f]{40}")


def fingerprint_folder(folder: Path, known: Mapping[str, str] | None = None) -> str:
    """Return one SHA-256 over the names and SHA-256s of the weight files (safetensors) of a model folder.

    Args:
        folder: of the model.
        known: SHA-256 of files by their names, which are not read again.

    Raises:
        FileNotFoundError: if the folder holds no weights in safetensors.
    """
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise FileNotFoundError(f"{folder}: no *.safetensors")
    total = hashlib.sha256()
    for path in weights:
        total.update(f"{path.name} {(known or {}).get(path.name) or digest_of(path)}\n".encode())
    return total.hexdigest()


def identity_entry(identity: str) -> dict[str, str]:
    """Return an identity under the name of what it is, for a record.

    Returns:
        ``sha256`` of content; ``commit`` of a Hub repository (``org/model@1f2e…``); ``unresolved`` where the commit
        could not be found out (``org/model@main``), which may stand for other weights tomorrow.
    """
    if _COMMIT.fullmatch(identity):
        return {"commit": identity}
    return {"unresolved" if "@" in identity else "sha256": identity}


def identity_of(entry: Mapping[str, Any]) -> str:
    """Return the identity in an entry of a record; empty if there is none.

    Records of version 0.1 have every identity under ``sha256``.
    """
    return str(next((entry[key] for key in ("sha256", "commit", "unresolved") if entry.get(key)), ""))


def shorten(identity: str) -> str:
    """Return an identity cut to what tells it apart on a screen: 16 digits of a hash, 12 of a commit."""
    name, at, commit = identity.rpartition("@")
    return f"{name}@{commit[:12]}" if at else identity[:16]
