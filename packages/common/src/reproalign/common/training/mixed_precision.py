"""One precision under every launcher, and a record of what was in force: measured, not assumed.

Single process and DDP hold weights as they were loaded and compute under autocast. Left to themselves the others do
something else for the same options: FSDP gathers and reduces in 16 bits and rounds what the model answers (log-probs of
hundreds of nats among it); DeepSpeed reduces and accumulates gradients in 16 bits. Here FSDP gathers float32 weights,
computes under autocast and reduces in float32, and DeepSpeed's configuration says float32
(:func:`reproalign.common.launch.plan.deepspeed_config`). What remains: DeepSpeed computes with a 16-bit copy of the
model, so that its activations between the layers are 16-bit too; ``activations`` in the record says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.utils.hooks import RemovableHandle
from transformers import Trainer, TrainerCallback
from transformers.pytorch_utils import Conv1D

from reproalign.common.errors import UserError
from reproalign.common.models.forward import unwrap_peft
from reproalign.common.records import Run


def fsdp_policy() -> MixedPrecisionPolicy:
    """FSDP's part beside autocast: weights gathered as they are held, gradients reduced in float32, answers kept."""
    return MixedPrecisionPolicy(reduce_dtype=torch.float32)


def keep_float32(accelerator: Accelerator, model: nn.Module) -> None:
    """Hold what is trained beside autocast in float32, and reduce its gradients so.

    Call it before anything is prepared. Adapters' heads and other modules that are trained whole come in the dtype of
    the base, and FSDP comes with a policy of its own.
    """
    if accelerator.mixed_precision == "no":
        return
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None:
        plugin.mixed_precision_policy = fsdp_policy()
    if getattr(accelerator.state, "deepspeed_plugin", None) is not None:
        return  # which makes the masters itself
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()


class PrecisionCallback(TrainerCallback):
    """Measures the precision in the first optimiser step of a process and writes it to ``precision`` of the record.

    ``weights``: as the optimiser updates them; ``optimizer_states``; ``gradients``: as they are accumulated;
    ``reduction``: as they are added over processes; ``compute``: of the products of linear layers; ``activations``: of
    the decoder's final states. Several dtypes are joined by " and ".

    Args:
        trainer: whose run it is.
        run: the open record.
    """

    def __init__(self, trainer: Trainer, run: Run) -> None:
        self.trainer, self.run = trainer, run
        self.found: dict[str, str] = {}
        self.hooks: list[RemovableHandle] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the weights, and listen to the first forward.

        Raises:
            UserError: if weights are not held in float32 beside autocast.
        """
        engine = self._engine()
        if engine is None:
            self.found = {"weights": names(updated_weights(self._optimizer()))}
        else:  # whose optimiser has weights only while it steps; the one of 16-bit stage 1 is for float32 alone
            held = getattr(engine.optimizer, "master_weights_and_grads_dtype", torch.float32)
            self.found = {"weights": name_of(held)}
        # Not the accelerator's word for it, which under DeepSpeed is that of a 16-bit engine.
        if (args.bf16 or args.fp16) and self.found["weights"] != "float32":
            raise UserError(
                f"weights are held in {self.found['weights']} beside autocast, where float32 was asked for; set "
                "model.dtype=float32"
            )
        self.hooks = list(self._listen(self.trainer.model if engine is None else engine.module))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the gradients."""
        if "gradients" in self.found:
            return
        engine, model = self._engine(), self.trainer.model
        assert model is not None
        if engine is not None:
            self.found["gradients"] = name_of(engine.get_data_types()[1])
            self.found["reduction"] = name_of(engine.communication_data_type)
            return
        self.found["gradients"] = names(p.grad for p in model.parameters() if p.grad is not None)
        plugin = getattr(self.trainer.accelerator.state, "fsdp_plugin", None)
        policy = None if plugin is None else plugin.mixed_precision_policy
        reduced = None if policy is None else policy.reduce_dtype
        self.found["reduction"] = self.found["gradients"] if reduced is None else name_of(reduced)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the optimiser's states, and write the record."""
        if "optimizer_states" in self.found:
            return
        if "gradients" not in self.found:  # DeepSpeed's step is one with its backward
            self.on_pre_optimizer_step(args, state, control)
        self.found["optimizer_states"] = names(optimizer_states(self._optimizer()))
        for hook in self.hooks:
            hook.remove()
        self.hooks = []
        self.run.set("precision", self.found)

    def _engine(self) -> Any:
        wrapped = self.trainer.model_wrapped
        return wrapped if hasattr(wrapped, "communication_data_type") else None

    def _optimizer(self) -> torch.optim.Optimizer:
        engine = self._engine()
        outer: Any = self.trainer.optimizer if engine is None else engine.optimizer
        optimizer: torch.optim.Optimizer = getattr(outer, "optimizer", outer)  # accelerate's and DeepSpeed's wrap it
        return optimizer

    def _listen(self, model: Any) -> Iterator[RemovableHandle]:
        base = unwrap_peft(model)
        linear = next((part for part in base.modules() if isinstance(part, nn.Linear | Conv1D)), None)
        for key, module in (("compute", linear), ("activations", base.base_model)):
            if module is not None:
                yield module.register_forward_hook(self._noting(key))

    def _noting(self, key: str) -> Any:
        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            if torch.is_grad_enabled():  # a reference that shares the weights is not trained
                self.found.setdefault(key, name_of((output if isinstance(output, Tensor) else output[0]).dtype))

        return note


def updated_weights(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """The tensors that an optimiser updates."""
    return (tensor for group in optimizer.param_groups for tensor in group["params"])


def optimizer_states(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """An optimiser's states that are as large as weights: no counts of steps."""
    return (
        value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor) and value.dim() > 0
    )


def names(tensors: Iterable[Tensor]) -> str:
    """The dtypes of some tensors."""
    return " and ".join(sorted({name_of(tensor.dtype) for tensor in tensors if tensor.is_floating_point()}))


def name_of(dtype: torch.dtype) -> str:
    """``bfloat16`` of ``torch.bfloat16``."""
    return str(dtype).removeprefix("torch.")
