"""The frozen reference policy: a second copy, the policy without its adapters, or log-probs computed beforehand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from jaxtyping import Float
from torch import Tensor, nn

from reproalign.common.config.model import LogprobsConfig
from reproalign.common.errors import UserError
from reproalign.common.logprobs.head_states import HeadStates
from reproalign.common.logprobs.model import install_completion_logps
from reproalign.common.text.collate import forward_inputs


class Reference(ABC):
    """Gives log π_ref(y|x) of a batch's rows."""

    def prepare(self, accelerator: Accelerator, logprobs: LogprobsConfig) -> None:  # noqa: B027
        """Put the reference where the run computes; called once by the trainer. Not every reference needs it."""

    @abstractmethod
    def completion_logps(self, model: nn.Module, inputs: dict[str, Tensor], prefix: str = "") -> Mapping[str, Tensor]:
        """Return the log-probs of the rows whose columns begin with ``prefix``, without gradient.

        Returns:
            ``sums`` (rows,), and ``per_token`` (tokens,), rows one after the other, unless only sums are known.
        """

    def states(self, model: nn.Module, inputs: dict[str, Tensor]) -> HeadStates:
        """Return what token statistics against the reference need, of the completion tokens; without gradient.

        Raises:
            UserError: if only log-probs of the reference are known.
        """
        raise UserError(
            "this loss needs the reference's whole distribution at every token, of which cached log-probs are only one "
            "entry; set reference.mode=copy, or adapter-disabled with LoRA"
        )

    def logps(self, model: nn.Module, inputs: dict[str, Tensor]) -> Float[Tensor, " rows"]:
        """Return the log-probs summed over completion tokens (of pairs: chosen first)."""
        return self.completion_logps(model, inputs)["sums"]


class FrozenReference(Reference):
    """A frozen second model."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._autocast: Callable[[], AbstractContextManager[Any]] = nullcontext  # where preparing brings none

    def prepare(self, accelerator: Accelerator, logprobs: LogprobsConfig) -> None:
        """Shard or place the model as the policy is."""
        install_completion_logps(self.model, logprobs)
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            from trl.models.utils import prepare_deepspeed

            with _without_masters(accelerator.state.deepspeed_plugin.deepspeed_config):
                self.model = prepare_deepspeed(self.model, accelerator)
        elif accelerator.distributed_type == DistributedType.FSDP:
            from trl.models.utils import prepare_fsdp

            sharded: Any = prepare_fsdp(self.model, accelerator)
            self.model, self._autocast = sharded, accelerator.autocast
        else:
            self.model = accelerator.prepare_model(self.model, evaluation_mode=True)
        self.model.eval()

    def completion_logps(self, model: nn.Module, inputs: dict[str, Tensor], prefix: str = "") -> Mapping[str, Tensor]:
        """Run the frozen model."""
        with self._autocast():
            return run_frozen(self.model, inputs, prefix)

    def states(self, model: nn.Module, inputs: dict[str, Tensor]) -> HeadStates:
        """Run the frozen model up to its head."""
        with self._autocast():
            return _states(self.model, inputs)


@contextmanager
def _without_masters(settings: dict[str, Any]) -> Iterator[None]:
    """Take out of DeepSpeed's settings what bf16 holds in training; without ZeRO's stages it is refused."""
    training = settings.get("bf16")
    if isinstance(training, dict):
        settings["bf16"] = {"enabled": training.get("enabled")}
    try:
        yield
    finally:
        if training is not None:
            settings["bf16"] = training


class AdapterDisabledReference(Reference):
    """The policy itself with its LoRA adapters switched off."""

    def prepare(self, accelerator: Accelerator, logprobs: LogprobsConfig) -> None:
        """Keep the accelerator, which knows how to unwrap the policy."""
        self._accelerator = accelerator

    def completion_logps(self, model: nn.Module, inputs: dict[str, Tensor], prefix: str = "") -> Mapping[str, Tensor]:
        """Run the policy without adapters."""
        with self._accelerator.unwrap_model(model).disable_adapter(), _without_dropout(model):
            return run_frozen(model, inputs, prefix)

    def states(self, model: nn.Module, inputs: dict[str, Tensor]) -> HeadStates:
        """Run the policy without adapters up to its head."""
        with self._accelerator.unwrap_model(model).disable_adapter(), _without_dropout(model):
            return _states(model, inputs)


class CachedReference(Reference):
    """Log-probs that stand in the data: sums as ``ref_chosen_logps`` and ``ref_rejected_logps`` of pairs, values per
    token as ``ref_logps`` and ``ref_KL_logps`` of unpaired examples.
    """

    def completion_logps(self, model: nn.Module, inputs: dict[str, Tensor], prefix: str = "") -> Mapping[str, Tensor]:
        """Read the columns."""
        if "ref_chosen_logps" in inputs:
            return {"sums": torch.cat([inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]])}
        values = inputs[f"ref_{prefix}logps"]
        counts = inputs[f"{prefix}completion_mask"][:, 1:].sum(1)
        scored = torch.arange(values.shape[1], device=values.device) < counts[:, None]
        return {"sums": values.sum(1), "per_token": values[scored]}


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """The reference has no dropout, though the policy whose weights it shares may train with some."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def run_frozen(model: nn.Module, inputs: dict[str, Tensor], prefix: str = "") -> Mapping[str, Tensor]:
    """Return a model's log-probs of the rows whose columns begin with ``prefix``, without gradient."""
    with torch.no_grad():
        return model(**forward_inputs(inputs, prefix), use_cache=False)  # type: ignore[no-any-return]


def _states(model: nn.Module, inputs: dict[str, Tensor]) -> HeadStates:
    with torch.no_grad():
        return model(**forward_inputs(inputs), head_states=True, use_cache=False)  # type: ignore[no-any-return]
