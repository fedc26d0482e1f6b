"""A model folder that names others: ``ensemble.json``, a logit ensemble's members and weights.

    {"format": 1, "members": ["../../train/cluster-0/model", "org/other"], "weights": [0.5, 0.5], "base": null}

Members are folders, relative to this one so that a tree of runs can be moved, or names as ``model.name`` takes them.
``base`` replaces the base that adapters name. The tokenizer's files lie beside it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reproalign.common.errors import UserError
from reproalign.common.files import write_json

ENSEMBLE = "ensemble.json"
FORMAT = 1


@dataclass(frozen=True)
class EnsembleSpec:
    """What an ensemble is of.

    Attributes:
        members: folders or names.
        weights: α_j, one for each.
        base: of members that are adapters; None: what they name.
    """

    members: tuple[str, ...]
    weights: tuple[float, ...]
    base: str | None


def is_ensemble(folder: str | Path) -> bool:
    """Say whether a folder is that of an ensemble."""
    return (Path(folder) / ENSEMBLE).is_file()


def read_ensemble(folder: Path) -> EnsembleSpec:
    """Read ``ensemble.json``; folders come as absolute paths.

    Raises:
        UserError: if it is no such file.
    """
    file = folder / ENSEMBLE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        members, weights, base = content["members"], content["weights"], content.get("base")
        good = content["format"] == FORMAT and len(members) == len(weights) > 0
        spec = EnsembleSpec(tuple(map(str, members)), tuple(map(float, weights)), base and str(base))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file}: not an ensemble's file ({error}); write it by a merge with method=ensemble"
        ) from error
    if not good:
        raise UserError(f"{file}: format {FORMAT} with one weight for each member is expected")
    placed = [str((folder / name).resolve()) if name.startswith(".") else name for name in (*spec.members, base or "")]
    return EnsembleSpec(tuple(placed[:-1]), spec.weights, placed[-1] or None)


def write_ensemble(folder: Path, members: Sequence[str], weights: Sequence[float], base: str | None) -> None:
    """Write ``ensemble.json`` into ``folder``, from which local folders are named."""
    content = {
        "format": FORMAT,
        "members": [_relative(name, folder) for name in members],
        "weights": list(weights),
        "base": base and _relative(base, folder),
    }
    write_json(folder / ENSEMBLE, content)


def _relative(name: str, folder: Path) -> str:
    path = Path(name).expanduser()
    return os.path.relpath(path.resolve(), folder.resolve()) if path.exists() else name
