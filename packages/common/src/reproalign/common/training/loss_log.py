"""The training loss as it is logged: whole windows and one mean over all steps, whatever interrupted the run.

The Trainer sums the losses of micro-batches up, logs their mean per step since the last log, and in the end
``train_loss``, the mean over all steps. When it resumes, both sums begin anew. Here they are part of the checkpoint:

    loss = 1/(s - s_0) 1/P Σ_p Σ_{s_0 < t ≤ s} ℓ_{p,t},    train_loss = 1/S Σ_t ℓ_t

over processes p = 1..P and steps t, with s_0 the step of the last log.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from reproalign.common.files import write_text


class LossLog:
    """Computes what ``trainer`` logs of the training loss, with the very additions that the Trainer makes.

    Args:
        trainer: whose :meth:`training_step` and :meth:`log` are wrapped.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer: Any = trainer
        self.window = torch.zeros(())
        self.total = 0.0  # of the windows that were logged
        self.logged = 0  # step of the last log
        self.begun = 0  # step from which on steps are counted
        self._training_step, self._log = self.trainer.training_step, self.trainer.log
        self.trainer.training_step, self.trainer.log = self.training_step, self.log

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Make the gradients of a micro-batch, and add its loss to the window."""
        loss: Tensor = self._training_step(*args, **kwargs)
        self.window = self.window.to(loss.device)
        if self.trainer.args.logging_nan_inf_filter and not torch.isfinite(loss):
            self.window += self.window / (1 + self.trainer.state.global_step - self.logged)
        else:
            self.window += loss
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log ``logs``, with the loss of a whole window and the mean over all steps where they have one."""
        step = self.trainer.state.global_step
        if "loss" in logs:
            mean = float(self.trainer.accelerator.gather(self.window).mean())
            logs["loss"] = mean / (step - self.logged)
            self.total, self.logged = self.total + mean, step
            self.window = torch.zeros_like(self.window)
        if "train_loss" in logs:
            logs["train_loss"] = (self.total + float(self.window)) / max(step - self.begun, 0.001)
        self._log(logs, start_time)

    def save_state(self, checkpoint: Path) -> None:
        """Write this process's sums into a checkpoint."""
        state = {"window": float(self.window), "total": self.total, "logged": self.logged, "begun": self.begun}
        write_text(self._path(checkpoint), json.dumps(state) + "\n")  # a loss may be NaN

    def load_state(self, checkpoint: Path) -> None:
        """Read back what :meth:`save_state` wrote; a checkpoint of an earlier version has nothing of it."""
        path = self._path(checkpoint)
        if not path.is_file():
            self.logged = self.begun = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).global_step
            return
        state = json.loads(path.read_text(encoding="utf-8"))
        self.window = torch.tensor(state["window"])
        self.total, self.logged, self.begun = state["total"], state["logged"], state["begun"]

    def _path(self, checkpoint: Path) -> Path:
        return checkpoint / f"loss-{self.trainer.args.process_index}.json"
