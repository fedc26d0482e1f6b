"""Fingerprints of weights: what makes two models the same model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from reproalign.common.files import sha256_file


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
        total.update(f"{path.name} {(known or {}).get(path.name) or sha256_file(path)}\n".encode())
    return total.hexdigest()
