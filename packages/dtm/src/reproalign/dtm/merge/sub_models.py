"""From what a user names to the folders of sub-models, in their order."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from reproalign.common.errors import UserError
from reproalign.common.manifests import RECORD
from reproalign.common.merging.headers import read_json
from reproalign.common.records.lineage import read_plain
from reproalign.dtm.rows import DISPERSAL, parse_clusters

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
RESULTS = ("model", "adapter")  # what a run leaves, the first that is there


def sub_models(models: Any) -> list[str]:
    """Return the model folders that ``models`` names.

    Args:
        models: the folder of a run that trained a sub-model on each cluster; or a list, or the release's comma list,
            of run folders, model folders, Hub ids, or adapter files.

    Raises:
        UserError: if a sub-model is missing or unfinished, naming it.
    """
    if isinstance(models, str):
        folder = Path(models).expanduser()
        if any(folder.glob("cluster-*")) or any(folder.glob("variation-*")):
            return [_child(folder, name) for name in _children(folder)]
        models = [models] if folder.exists() else models.split(",")
    if not isinstance(models, list) or not models or not all(isinstance(entry, str) and entry for entry in models):
        raise UserError(f"models={models}: give the folder of a `dtm train clusters=all` run, or a list of models")
    return [_model(entry.strip()) for entry in models]


def run_of(model: str) -> tuple[Path, dict[str, Any]] | None:
    """Return the run that trained a sub-model, and its record; None if no record lies beside it."""
    folder = Path(model).expanduser()
    for run in (folder, folder.parent):
        record = read_plain(run)
        if record is not None:
            return run, record
    return None


def _children(folder: Path) -> list[str]:
    """Return the names of the runs that ``dtm train clusters=…`` or ``variations=…`` makes in its folder.

    A folder without a record has those that are there, without a gap.
    """
    config = (read_plain(folder) or {}).get("config") or {}
    if config.get("variations"):
        return [f"variation-{number}" for number in range(len(config["variations"]))]
    if config.get("clusters") not in (None, "all"):
        return [f"cluster-{cluster}" for cluster in parse_clusters(config["clusters"]) or []]
    kind = "cluster" if any(folder.glob("cluster-*")) else "variation"
    found = [int(name[1]) for path in folder.iterdir() if (name := re.fullmatch(rf"{kind}-(\d+)", path.name))]
    facts = Path(str(config.get("dispersal"))).expanduser() / DISPERSAL
    expected = int(read_json(facts).get("clusters", 0)) if facts.is_file() else 0
    return [f"{kind}-{number}" for number in range(max(expected, 1 + max(found, default=-1)))]


def _child(folder: Path, name: str) -> str:
    again = f"; give the command of {folder} again, which trains what is missing"
    if not (folder / name).is_dir():
        raise UserError(f"models={folder}: the sub-model {name} is missing{again}")
    status = (read_plain(folder / name) or {}).get("status")
    if status != "finished":
        raise UserError(f"models={folder}: the sub-model {name} is {status or 'not begun'}{again}")
    return _model(str(folder / name))


def _model(name: str) -> str:
    """Return the folder that a run, a folder or an adapter file stands for; other names as they are."""
    path = Path(name).expanduser()
    if path.name in ADAPTER_FILES:  # the release's --ckpt_paths
        if not any(path.with_name(file).is_file() for file in ADAPTER_FILES):
            raise UserError(f"models: {name}: no such file")
        return str(path.parent)
    if not (path / RECORD).is_file() or (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
        return name
    status = (read_plain(path) or {}).get("status")
    if status != "finished":
        raise UserError(f"models: the run {name} is {status or 'broken'}; give its command again to finish it")
    made = next((path / result for result in RESULTS if (path / result).is_dir()), None)
    if made is None:
        raise UserError(f"models: the run {name} left no model (no folder {' or '.join(RESULTS)}); give another")
    return str(made)
