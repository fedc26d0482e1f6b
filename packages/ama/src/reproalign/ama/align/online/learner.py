"""What learns: policy and value head on one trunk, the frozen reference, the optimiser."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from peft import PeftModel, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from torch import nn
from transformers import PreTrainedTokenizerBase, set_seed

from reproalign.ama.align.online.kept import Kept
from reproalign.ama.align.ppo_config import PPOConfig
from reproalign.common.config.model import ReferenceConfig
from reproalign.common.errors import UserError
from reproalign.common.launch.plan import check_in_force
from reproalign.common.logprobs.values import install_completion_values
from reproalign.common.models.adapters import Model
from reproalign.common.models.forward import unwrap_peft
from reproalign.common.models.load import load_causal_lm, load_reference
from reproalign.common.models.value_head import NAME, attach_value_head
from reproalign.common.training.reference import AdapterDisabledReference, FrozenReference, Reference


@dataclass(frozen=True)
class Learner:
    """Everything that an iteration works with.

    Attributes:
        accelerator: of the run.
        policy: the model with the value head, as accelerate prepared it.
        reference: π_0.
        optimizer: of all that is trained.
    """

    accelerator: Accelerator
    policy: nn.Module
    reference: Reference
    optimizer: torch.optim.Optimizer

    @property
    def model(self) -> Model:
        """The policy without its wrapper."""
        unwrapped: Model = self.accelerator.unwrap_model(self.policy)
        return unwrapped

    def trained(self) -> dict[str, nn.Parameter]:
        """Return all that is trained, by name."""
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}


def make_accelerator(config: PPOConfig) -> Accelerator:
    """Return the accelerator of the run; without a GPU it is on the CPU.

    Raises:
        UserError: if another launch strategy is in force than was asked for.
    """
    gpu = torch.accelerator.is_available()
    half = gpu if config.bf16 is None else config.bf16
    accelerator = Accelerator(
        mixed_precision="bf16" if half else "no",
        cpu=not gpu,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    check_in_force(config.launch.strategy, accelerator.distributed_type.value)
    return accelerator


def make_learner(
    config: PPOConfig, accelerator: Accelerator, tokenizer: PreTrainedTokenizerBase, start: Kept | None
) -> Learner:
    """Load policy and reference.

    Args:
        config: of the run.
        accelerator: of the run.
        tokenizer: of the policy.
        start: the kept iteration that the policy goes on from; None: ``config.model``.

    Raises:
        UserError: for weights that cannot be read, or a tokenizer of more tokens than the policy has.
    """
    set_seed(config.seed)  # adapters and value head begin at random
    adapted = config.model.lora.enabled
    policy: Any = load_causal_lm(config.model, name=str(start.weights) if start and not adapted else None)
    vocabulary = policy.config.get_text_config().vocab_size
    if len(tokenizer) > vocabulary:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} tokens, '{config.model.name}' only {vocabulary}; leave out "
            "model.tokenizer, or give one of the model's"
        )
    if start and adapted:
        _load_adapter(policy, start.weights)
    if config.gradient_checkpointing:
        policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if adapted:
            policy.enable_input_require_grads()
    # Onto the language model itself, and not through PEFT, which would save the head with the adapter.
    critic = start.critic if start and config.restart_critic == "kept" else None
    language_model = unwrap_peft(policy)
    attach_value_head(language_model, weights=critic)
    getattr(language_model, NAME).float()  # as the adapters are, whatever they stand on
    logprobs = config.logprobs
    install_completion_values(policy, logprobs)
    reference: Reference = AdapterDisabledReference()
    if not adapted or config.reference:
        reference = FrozenReference(load_reference(config.model, ReferenceConfig(model=config.reference)))
    policy = accelerator.prepare(policy)
    reference.prepare(accelerator, logprobs)
    trained = [value for value in policy.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate(config, 1), weight_decay=0.0)
    return Learner(accelerator, policy, reference, optimizer)


def learning_rate(config: PPOConfig, iteration: int) -> float:
    """Return the rate of an iteration: the same in all of them, or falling on a line or a cosine towards 0."""
    peak = config.learning_rate
    if peak is None:
        peak = 1e-5 if config.model.lora.enabled else 1e-6
    gone = (iteration - 1) / config.iterations
    factors = {"constant": 1.0, "linear": 1.0 - gone, "cosine": 0.5 * (1.0 + math.cos(math.pi * gone))}
    return peak * factors[config.lr_schedule]


def epochs(config: PPOConfig) -> int:
    """Return the passes over an iteration's responses."""
    return config.epochs or (4 if config.model.lora.enabled else 2)


def is_critic(name: str) -> bool:
    """Say whether a parameter is the value head's."""
    return f".{NAME}." in f".{name}"


def _load_adapter(policy: PeftModel, folder: Path) -> None:
    found = load_peft_weights(str(folder), device="cpu")
    own = get_peft_model_state_dict(policy)
    if {name: tensor.shape for name, tensor in found.items()} != {name: tensor.shape for name, tensor in own.items()}:
        raise UserError(
            f"restart_from: the adapter in {folder} does not fit model.lora; give the rank and the target modules that "
            "it was trained with"
        )
    set_peft_model_state_dict(policy, found)
