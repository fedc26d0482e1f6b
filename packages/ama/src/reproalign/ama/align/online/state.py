"""The state of a run after an iteration, from which it goes on bit for bit: ``checkpoint-K``, sealed.

It holds what is trained, the optimiser's moments, and where the run stands. Prompts, responses, mini-batches and noise
follow from the seed and the number of the iteration.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from reproalign.ama.align.online.kept import NOTE, Standing
from reproalign.ama.align.online.learner import Learner
from reproalign.common.errors import UserError
from reproalign.common.files import write_json
from reproalign.common.manifests import seal
from reproalign.common.records.metrics import metric_rows
from reproalign.common.records.record import plain
from reproalign.common.training.checkpoints import list_checkpoints

TRAINED, MOMENTS = "trained.safetensors", "optimizer.safetensors"
ROWS = "rows.json"
KEPT_CHECKPOINTS = 2  # the newest, and the one to fall back to


def save_state(run_dir: Path, learner: Learner, standing: Standing, rows: list[dict[str, Any]]) -> None:
    """Write ``checkpoint-K``, sealed last of all, and remove those older than the one before; one process does it.

    Args:
        run_dir: the run's folder.
        learner: what is trained.
        standing: of the run.
        rows: that were logged so far.
    """
    folder = run_dir / f"checkpoint-{standing.iteration}"
    shutil.rmtree(folder, ignore_errors=True)  # what an interruption left of it
    folder.mkdir()
    trained = learner.trained()
    save_file({name: value.detach().cpu().contiguous() for name, value in trained.items()}, folder / TRAINED)
    save_file(_moments(learner.optimizer, list(trained)), folder / MOMENTS)
    write_json(folder / NOTE, asdict(standing))
    write_json(folder / ROWS, plain(rows))
    seal(folder)
    for old in list_checkpoints(run_dir)[KEPT_CHECKPOINTS:]:
        shutil.rmtree(old)


def load_state(folder: Path, learner: Learner) -> Standing:
    """Put a checkpoint into ``learner``; every process does it.

    Raises:
        UserError: if its tensors are not this run's.
    """
    trained = learner.trained()
    found = load_file(folder / TRAINED)
    if found.keys() != trained.keys() or any(found[name].shape != trained[name].shape for name in found):
        raise UserError(f"resume={folder}: not a checkpoint of this run (it trains other tensors); use resume=auto")
    with torch.no_grad():
        for name, value in trained.items():
            value.copy_(found[name])
    _load_moments(learner.optimizer, list(trained), load_file(folder / MOMENTS))
    return Standing(**json.loads((folder / NOTE).read_text(encoding="utf-8")))


def logged_rows(folder: Path) -> list[dict[str, Any]]:
    """Return the rows that were logged up to a checkpoint; one of an earlier version has them beside it."""
    path = folder / ROWS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else metric_rows(folder.parent)


def _moments(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """Return the optimiser's state by the name of the tensor and of the moment; empty before the first step."""
    state: dict[int, dict[str, Tensor]] = optimizer.state_dict()["state"]
    return {
        f"{names[index]}/{moment}": tensor.detach().cpu().contiguous()
        for index, moments in state.items()
        for moment, tensor in moments.items()
    }


def _load_moments(optimizer: torch.optim.Optimizer, names: list[str], found: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in found.items():
        name, _, moment = key.rpartition("/")
        state.setdefault(names.index(name), {})[moment] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
