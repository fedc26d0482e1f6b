"""Checkpoints that can be trusted: each carries a manifest of SHA-256s, written last and checked before resuming."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from reproalign.common.errors import UserError
from reproalign.common.integrity import damage
from reproalign.common.manifests import CARD, seal


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Return the ``checkpoint-N`` folders of a run, newest first."""
    found = [
        (int(match.group(1)), path)
        for path in run_dir.glob("checkpoint-*")
        if path.is_dir() and (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    ]
    return [path for _, path in sorted(found, reverse=True)]


def resume_from(run_dir: Path, resume: str, on_bad_checkpoint: str) -> Path | None:
    """Choose the checkpoint to resume from.

    Args:
        run_dir: the run's folder.
        resume: ``auto`` (the newest good checkpoint, none if there is none), ``never``, or one of its checkpoints.
        on_bad_checkpoint: ``fallback`` names a damaged checkpoint and takes the next older one; ``stop`` refuses.

    Returns:
        The checkpoint, or None to start from the beginning.

    Raises:
        UserError: for a named folder that is damaged, missing or another run's, or for any damage under ``stop``.
    """
    if resume == "never":
        return None
    if resume != "auto":
        folder = Path(resume)
        if not folder.is_dir():
            raise UserError(f"resume={resume}: no such checkpoint folder")
        if folder.resolve().parent != run_dir.resolve():
            raise UserError(
                f"resume={resume} is not of this run, whose checkpoints are in output_dir={run_dir}; to start from its "
                f"weights, give model.name={resume}"
            )
        if problem := damage(folder):
            raise UserError(f"cannot resume: {problem}; name another checkpoint or use resume=auto")
        return folder
    for folder in list_checkpoints(run_dir):
        problem = damage(folder)
        if problem is None:
            return folder
        if on_bad_checkpoint == "stop":
            raise UserError(f"cannot resume: {problem}; delete that checkpoint or set on_bad_checkpoint=fallback")
        if PartialState().is_main_process:
            print(f"damaged checkpoint skipped: {problem}", file=sys.stderr)
    return None


@runtime_checkable
class Stateful(Protocol):
    """What has a state of its own in checkpoints, on every process."""

    def save_state(self, checkpoint: Path) -> None:
        """Write what the Trainer does not know of, before a checkpoint is sealed."""

    def load_state(self, checkpoint: Path) -> None:
        """Read back what :meth:`save_state` wrote, before training goes on."""


class ManifestCallback(TrainerCallback):
    """Seals every checkpoint once all processes have written their part of it.

    Args:
        stateful: whose states it takes along.
    """

    def __init__(self, stateful: Sequence[Stateful]) -> None:
        self.stateful = stateful

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the manifest of the checkpoint just saved."""
        partial = PartialState()
        folder = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
        partial.wait_for_everyone()
        for part in self.stateful:
            part.save_state(folder)
        partial.wait_for_everyone()
        if partial.is_main_process:
            (folder / CARD).unlink(missing_ok=True)  # PEFT's, which is empty but for the path of a cache
            seal(folder)
        partial.wait_for_everyone()
