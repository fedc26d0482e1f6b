"""Checkpoints that can be trusted: each carries a manifest of SHA-256s, written last and checked before resuming."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from reproalign.common.errors import UserError
from reproalign.common.integrity import damage, seal


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
        resume: ``auto`` (the newest good checkpoint, none if there is none), ``never``, or a checkpoint folder.
        on_bad_checkpoint: ``fallback`` names a damaged checkpoint and takes the next older one; ``stop`` refuses.

    Returns:
        The checkpoint, or None to start from the beginning.

    Raises:
        UserError: for a named folder that is damaged or missing, or for any damage under ``stop``.
    """
    if resume == "never":
        return None
    if resume != "auto":
        folder = Path(resume)
        if not folder.is_dir():
            raise UserError(f"resume={resume}: no such checkpoint folder")
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


class ManifestCallback(TrainerCallback):
    """Seals every checkpoint once all processes have written their part of it.

    Args:
        save_state: writes into the checkpoint's folder, on every process, what the Trainer does not know of.
    """

    def __init__(self, save_state: Callable[[Path], None] | None = None) -> None:
        self.save_state = save_state

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the manifest of the checkpoint just saved."""
        partial = PartialState()
        folder = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
        partial.wait_for_everyone()
        if self.save_state:
            self.save_state(folder)
            partial.wait_for_everyone()
        if partial.is_main_process:
            seal(folder)
        partial.wait_for_everyone()
