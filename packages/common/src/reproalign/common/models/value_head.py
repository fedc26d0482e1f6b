"""A scalar value per token beside a causal language model's log-probs, for PPO.

The head is a submodule ``v_head`` of the language model itself: wrappers shard and move it with the rest,
``save_pretrained`` writes it with the rest. A saved folder is read by plain ``transformers``, which ignores the head's
tensors; one with a linear head also by TRL's ``AutoModelForCausalLMWithValueHead``, whose names it has
(``v_head.summary.weight`` and ``.bias``).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from safetensors import safe_open
from torch import Tensor, nn

from reproalign.common.errors import UserError
from reproalign.common.models.forward import unwrap_peft

NAME = "v_head"


class ValueHead(nn.Module):
    """V(s) = w · h + b on final hidden states, through which the critic's loss also trains the language model."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.summary = nn.Linear(hidden_size, 1)

    def forward(self, hidden: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch"]:
        """Return the values, in float32 or better."""
        values: Tensor = self.summary(hidden.to(self.summary.weight.dtype)).squeeze(-1)
        return values if values.dtype == torch.float64 else values.float()


class DetachedValueHead(nn.Module):
    """V(s) of three linear layers on final hidden states, without a gradient into the language model.

    h → hidden → hidden → 1 with dropout and ReLU after each but the last, in float32 whatever the language model's
    dtype and autocast; HALOs' head (``train/models.py``).

    Args:
        hidden_size: of the states, and of both hidden layers.
        dropout: of both hidden layers while the model trains, in [0, 1).
    """

    def __init__(self, hidden_size: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(hidden_size, hidden_size),
            nn.Dropout(dropout),
            nn.ReLU(),
            nn.Linear(hidden_size, hidden_size),
            nn.Dropout(dropout),
            nn.ReLU(),
            nn.Linear(hidden_size, 1),
        )

    def forward(self, hidden: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch"]:
        """Return the values, in float32."""
        with torch.autocast(hidden.device.type, enabled=False):
            values: Tensor = self.layers(hidden.detach().float()).squeeze(-1)
        return values


def attach_value_head(
    model: nn.Module, weights: Path | None = None, *, head: Callable[[int], nn.Module] | None = None
) -> None:
    """Give a causal language model (or one wrapped by PEFT, which then saves the head with the adapter) a value head.

    :func:`reproalign.common.logprobs.values.install_completion_values` makes the model answer with values; the trainer
    of unpaired feedback calls it.

    Args:
        model: changed in place; a head that it has already is replaced.
        weights: a saved folder to read the head from; None: ``nn.Linear``'s random start.
        head: makes a head for states of a size, in its own dtype; None: a :class:`ValueHead` in the model's.

    Raises:
        UserError: if the folder holds no value head of this size.
    """
    base = unwrap_peft(model)
    size = base.get_output_embeddings().in_features
    made: nn.Module = (head(size) if head else ValueHead(size).to(dtype=base.dtype)).to(device=base.device)
    if weights is not None:
        _read(made, weights)
    if isinstance(model, PeftModel):
        config: Any = model.peft_config[model.active_adapter]
        config.modules_to_save = sorted({*(config.modules_to_save or ()), NAME})
        made = ModulesToSaveWrapper(made, model.active_adapter)
        made.set_adapter(model.active_adapter)
    base.add_module(NAME, made)


def has_value_head(model: nn.Module) -> bool:
    """Whether :func:`attach_value_head` was called on ``model``."""
    return isinstance(getattr(unwrap_peft(model), NAME, None), nn.Module)


def _read(head: nn.Module, folder: Path) -> None:
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            names = [name for name in tensors.keys() if f".{NAME}." in f".{name}"]  # noqa: SIM118 - not a dict
            found |= {name.rpartition(f"{NAME}.")[2]: tensors.get_tensor(name) for name in names}
    try:
        head.load_state_dict(found)
    except RuntimeError as error:
        raise UserError(
            f"{folder} holds no value head of this model (its tensors: {sorted(found) or 'none'}); give the folder "
            "of a model trained with one"
        ) from error
