"""From what a user names to the folders of sub-models, in their order."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from reproalign.common.errors import UserError
from reproalign.common.merging.checkpoint import read_json
from reproalign.common.records.lineage import RECORD, read_plain

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
        if any(folder.glob("cluster-*")):
            return [str(path) for path in clusters(folder)]
        models = [models] if folder.exists() else models.split(",")
    if not isinstance(models, list) or not models or not all(isinstance(entry, str) and entry for entry in models):
        raise UserError(f"models={models}: give the folder of a `dtm train clusters=all` run, or a list of models")
    return [_model(entry.strip()) for entry in models]


def clusters(folder: Path) -> list[Path]:
    """Return the model folders of the sub-models in ``folder``, by cluster.

    Raises:
        UserError: if one is missing or unfinished.
    """
    found = {int(path.name[8:]) for path in folder.glob("cluster-*") if re.fullmatch(r"cluster-\d+", path.name)}
    record = read_plain(folder) or {}
    count = max(_expected(record), 1 + max(found, default=-1))
    again = f"; give the command of {folder} again, which trains what is missing"
    made = []
    for cluster in range(count):
        run = folder / f"cluster-{cluster}"
        if not run.is_dir():
            raise UserError(f"models={folder}: the sub-model cluster-{cluster} of {count} is missing{again}")
        status = (read_plain(run) or {}).get("status")
        if status != "finished":
            raise UserError(f"models={folder}: the sub-model cluster-{cluster} is {status or 'not begun'}{again}")
        made.append(Path(_model(str(run))))
    if record.get("status", "finished") != "finished":
        raise UserError(f"models={folder}: the run is {record['status']}{again}")
    return made


def run_of(model: str) -> tuple[Path, dict[str, Any]] | None:
    """Return the run that trained a sub-model, and its record; None if no record lies beside it."""
    folder = Path(model).expanduser()
    for run in (folder, folder.parent):
        record = read_plain(run)
        if record is not None:
            return run, record
    return None


def _expected(record: dict[str, Any]) -> int:
    """Return how many clusters the dispersal of a run has; 0 if it does not say."""
    dispersal = (record.get("config") or {}).get("dispersal")
    facts = Path(str(dispersal)).expanduser() / "dispersal.json"
    return int(read_json(facts).get("clusters", 0)) if dispersal and facts.is_file() else 0


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
