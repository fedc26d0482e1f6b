r"""The average of the weights along a training: stochastic weight averaging, and a moving average with resets.

With θ_t the weights after optimiser step t, s the step where averaging starts and samples every e steps,

    swa    A = mean of θ_{s+e}, θ_{s+2e}, …            (Izmailov et al., 2018)
    ema    A_s = θ_s,  A ← d A + (1 - d) θ_t           (SMA; d the decay)
    reset  every r steps  θ ← A,  A ← θ_0              (Elastic Reset, Noukhovitch et al., 2023)

The averaged model is what the training ends with. Averages are kept in float32, of the trained weights alone, placed
and sharded as these are; they are part of every checkpoint. The paper draws this baseline as "MoA" and describes none
of its settings, and the release has only the name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.swa_utils import get_ema_avg_fn, get_swa_avg_fn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from reproalign.ama.align.config import AveragingConfig
from reproalign.ama.align.weight_penalty import Start, trained
from reproalign.common.errors import UserError

NAMES = ("none", "swa", "ema")
STATE = "averaged.safetensors"  # in a checkpoint
_COUNT = "samples"  # its entry that is no weight


def check_averaging(config: AveragingConfig) -> None:
    """Refuse options that no average can have.

    Raises:
        UserError: naming the key.
    """
    if config.name == "none":
        if config != AveragingConfig():
            raise UserError(
                "averaging.*: without averaging.name=swa or ema nothing is averaged; set it, or leave these"
            )
        return
    if config.name == "swa" and config.decay != AveragingConfig.decay:
        raise UserError("averaging.decay is of averaging.name=ema; swa weighs all samples alike")
    if config.name == "swa" and config.reset_every is not None:
        raise UserError("averaging.reset_every is of averaging.name=ema; remove it")


class Averaging(TrainerCallback):
    """Samples the weights as they are trained, and gives the model their average at the end (R14).

    Args:
        config: checked, not ``none``.
        model: as training starts.
    """

    def __init__(self, config: AveragingConfig, model: nn.Module) -> None:
        self.config = config
        self._start = Start(model) if config.reset_every else None
        self._average: dict[str, Tensor] = {}
        self._samples = 0
        self._loaded: dict[str, Tensor] = {}
        ema: Callable[..., Tensor] = get_ema_avg_fn(config.decay)
        self._mix = get_swa_avg_fn() if config.name == "swa" else ema

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin, or go on from a checkpoint.

        Raises:
            UserError: if the training has too few steps for a sample.
        """
        first = self.config.start + self.config.every
        if state.max_steps < first:
            raise UserError(
                f"averaging.start={self.config.start} and averaging.every={self.config.every} take the first sample "
                f"after step {first}, and the run has {state.max_steps}; lower them, or train longer"
            )
        if self._loaded:
            self._place_loaded(kwargs["model"])
        elif self.config.start == state.global_step == 0:
            self._begin(kwargs["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take a sample, and reset, where it is time."""
        model: nn.Module = kwargs["model"]
        since = state.global_step - self.config.start
        if since == 0:
            self._begin(model)
        if since > 0 and since % self.config.every == 0:
            self._sample(model)
        reset = self.config.reset_every
        if reset and since > 0 and since % reset == 0 and state.global_step < state.max_steps:
            self._reset(model)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give the model the average."""
        with torch.no_grad():
            for name, weight in trained(kwargs["model"]).items():
                weight.copy_(self._average[name])

    def save(self, checkpoint: Path) -> None:
        """Write the averages so far; all processes take part."""
        whole = {name: _whole(value).cpu().contiguous() for name, value in self._average.items()}
        if PartialState().is_main_process and whole:
            save_file({**whole, _COUNT: torch.tensor(self._samples)}, checkpoint / STATE)

    def load(self, checkpoint: Path) -> None:
        """Read what :meth:`save` wrote, if averaging had begun by then."""
        path = checkpoint / STATE
        self._loaded = load_file(path) if path.is_file() else {}

    def _begin(self, model: nn.Module) -> None:
        """Let the average begin at the present weights; the mean of samples has none of them in it."""
        self._samples = 1 if self.config.name == "ema" else 0
        self._average = {name: weight.detach().float().clone() for name, weight in trained(model).items()}

    @torch.no_grad()
    def _sample(self, model: nn.Module) -> None:
        for name, weight in trained(model).items():
            average, current = self._average[name], weight.detach().float()
            average.copy_(self._mix(average, current, self._samples) if self._samples else current)
        self._samples += 1

    @torch.no_grad()
    def _reset(self, model: nn.Module) -> None:
        assert self._start is not None  # averaging.reset_every is set
        beside = self._start.beside(model)
        for (name, weight), (_, start) in zip(trained(model).items(), beside, strict=True):
            weight.copy_(self._average[name])
            self._average[name].copy_(start)

    def _place_loaded(self, model: nn.Module) -> None:
        self._samples = int(self._loaded.pop(_COUNT))
        for name, weight in trained(model).items():
            whole = self._loaded[name].to(weight.device)
            if isinstance(weight, DTensor):
                whole = distribute_tensor(whole, weight.device_mesh, weight.placements)
            self._average[name] = whole
        self._loaded = {}


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value
