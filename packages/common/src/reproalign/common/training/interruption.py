"""Training that a signal ends: a checkpoint after the step at hand, in all processes the same."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from reproalign.common.errors import Interruption
from reproalign.common.launch.signals import asked, safe_points
from reproalign.common.training.checkpoints import list_checkpoints


class InterruptionCallback(TrainerCallback):
    """Saves a checkpoint and ends training after the step in which a signal came to any of the processes.

    Where it is the last that is added, the checkpoint is sealed before training ends.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.accelerator = trainer.accelerator
        self.number: signal.Signals | None = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask all processes whether one was signalled; ask for a checkpoint if so."""
        mine = asked()
        if self.accelerator.num_processes > 1:
            if mine:
                self.accelerator.set_trigger()
            ends = self.accelerator.check_trigger()
        else:
            ends = mine is not None
        if ends:
            self.number = next(number for number in gather_object([mine]) if number)
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """End training once the checkpoint that was asked for is there."""
        if self.number is not None:
            raise Interruption(self.number, f"after step {state.global_step}: checkpoint-{state.global_step} is whole")


def take_no_step_beyond_the_last(trainer: Trainer) -> None:
    """Give ``trainer`` no batches once all steps are done, as they are when the last checkpoint is resumed.

    The Trainer looks whether training is over only after a step: with ``max_steps`` inside an epoch it would make one
    more, and end with other weights.
    """
    patched: Any = trainer
    original = patched.get_batch_samples

    def get_batch_samples(*args: Any, **kwargs: Any) -> Any:
        state = patched.state
        return ([], None) if state.global_step >= state.max_steps else original(*args, **kwargs)

    patched.get_batch_samples = get_batch_samples


@contextmanager
def interruptible(trainer: Trainer, run_dir: Path) -> Iterator[None]:
    """Let a signal that comes in this block, in which ``trainer`` trains, wait for the end of a step.

    Raises:
        Interruption: with what is kept of the run and what is lost.
    """
    trainer.add_callback(InterruptionCallback(trainer))
    take_no_step_beyond_the_last(trainer)
    try:
        with safe_points():
            yield
    except (KeyboardInterrupt, RuntimeError) as error:
        if isinstance(error, Interruption) and error.where:
            raise
        if isinstance(error, RuntimeError) and asked() is None:
            raise  # else another process has ended before this one came to its safe point
        step, kept = trainer.state.global_step, [path.name for path in list_checkpoints(run_dir)[:1]]
        lost = (
            f"in step {step + 1}: what came after {kept[0]} is lost" if kept else f"in step {step + 1}: no checkpoint"
        )
        raise Interruption(asked() or signal.SIGINT, lost) from error
