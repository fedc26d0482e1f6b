"""What training shows while it runs: labelled bars in a terminal, lines in a file, and its logs as plain numbers."""

from __future__ import annotations

from typing import Any

from rich.progress import Progress, TaskID
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from reproalign.common.console import note, note_console, progress

# Of a row of logs, in this order; what else it holds comes after them.
FIRST = ("loss", "eval_loss", "rewards/accuracies", "eval_rewards/accuracies", "rewards/margins", "grad_norm")
LAST = ("epoch", "total_flos")


def show_progress(trainer: Trainer) -> None:
    """Let ``trainer`` show its progress as all commands do, in place of bars without labels and printed dicts."""
    for theirs in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(theirs)
    if not any(isinstance(callback, WatchCallback) for callback in trainer.callback_handler.callbacks):
        trainer.add_callback(WatchCallback(shown=not trainer.args.disable_tqdm))


class WatchCallback(TrainerCallback):
    """Draws bars on standard error, and writes each log of training as a line; the main process does.

    Args:
        shown: false for lines alone (``trainer.disable_tqdm=true``).
    """

    def __init__(self, *, shown: bool = True) -> None:
        self.shown = shown
        self.bars: Progress | None = None
        self.training: TaskID | None = None
        self.evaluating: TaskID | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin the bar of the optimiser's steps, where a checkpoint left it."""
        if state.is_world_process_zero:
            self.training = self._open().add_task("training", total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Advance by a step."""
        if self.bars and self.training is not None:
            self.bars.update(self.training, completed=state.global_step)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Advance an evaluation by a batch."""
        loader: Any = kwargs.get("eval_dataloader")
        if state.is_world_process_zero and hasattr(loader, "__len__"):
            bars = self._open()
            if self.evaluating is None:
                self.evaluating = bars.add_task("evaluating", total=len(loader))
            bars.advance(self.evaluating)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """End the bar of an evaluation."""
        self._end_evaluation()

    def on_predict(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        """End the bar of a prediction."""
        self._end_evaluation()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write a line: as many numbers as the terminal's line holds, in a file all of them."""
        if state.is_world_process_zero and logs and self.training is not None:
            console = note_console()
            line = log_line(logs, state.global_step, state.max_steps, console.width)
            (self.bars.console.print if self.bars else console.print)(line, soft_wrap=True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End the bar of the steps."""
        self.training = None
        self._close()

    def _open(self) -> Progress:
        if self.bars is None:
            self.bars = progress(shown=self.shown)
            self.bars.start()
        return self.bars

    def _end_evaluation(self) -> None:
        if self.bars and self.evaluating is not None:
            self.bars.remove_task(self.evaluating)
        self.evaluating = None
        if self.training is None:
            self._close()

    def _close(self) -> None:
        if self.bars:
            self.bars.stop()
        self.bars = None


def log_line(logs: dict[str, Any], step: int, steps: int, width: int) -> str:
    """Return a row of logs as one line of at most ``width`` characters; what does not fit is in ``metrics.jsonl``."""
    first = {name: logs[name] for name in FIRST if name in logs}
    numbers = {name: value for name, value in (first | logs).items() if isinstance(value, int | float)}
    line = f"step {step}/{steps}"
    for name, value in sorted(numbers.items(), key=lambda entry: entry[0] in LAST):
        part = f"  {name} {value:.4g}"
        if len(line) + len(part) <= width:
            line += part
    return line


def announce(lines: dict[str, str]) -> None:
    """Say what is about to be done, one fact a line."""
    width = max(map(len, lines)) + 2
    for name, text in lines.items():
        note(f"{name + ':':{width}}{text}")
