"""The reward model: a causal language model's body with a linear head w of one output, r(x, y) = w · pool(h).

It is held and saved as ``transformers``' sequence classifier of one label, whose head has the same shape and place in
every decoder. :func:`install_rewards` puts our pooling into its ``forward``, on which DDP, FSDP, DeepSpeed and
accelerate's autocast act. How a model was trained to read a text stands beside its weights, in ``reward.json``
(:mod:`reproalign.common.reward.rules`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from reproalign.common.config.model import LoadedModelConfig
from reproalign.common.errors import UserError
from reproalign.common.models.adapters import Model
from reproalign.common.models.forward import earlier_forward, replace_forward, unwrap_peft
from reproalign.common.models.load import load_reward_model, load_tokenizer
from reproalign.common.reward.pooling import BY_ID, pool, pooled_index, states_at
from reproalign.common.reward.released import released_pool
from reproalign.common.reward.rules import RewardRules
from reproalign.common.text.templates import set_template

_REWARDS, _WIDE = "rewards", "wide"  # the changes to forwards


def load_reward_tokenizer(config: LoadedModelConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer of ``config``, with the configured chat template, and a pad token (EOS if it has none)."""
    tokenizer = load_tokenizer(config)
    if config.chat_template:
        set_template(tokenizer, config.chat_template)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_reward(
    config: LoadedModelConfig, tokenizer: PreTrainedTokenizerBase, rules: RewardRules, pad_id: int
) -> Model:
    """Load a reward model that answers ``rewards=True`` (:func:`install_rewards`).

    Of a language model the body is taken and the head begins at w ~ N(0, initializer_range²); of a saved reward model
    (or an adapter of one) the head as well.

    Args:
        config: the weights, and how they are held; what is trained has a
            :class:`~reproalign.common.config.model.ModelConfig`.
        tokenizer: of the same model.
        rules: how it reads.
        pad_id: the id that batches are padded with.

    Raises:
        UserError: if the weights cannot be read, or make no classifier with a linear head on a decoder.
    """
    model = load_reward_model(config, tokenizer)
    base: Any = unwrap_peft(model)
    if not hasattr(base, "score"):
        raise UserError(
            f"'{config.name}' is a {type(base).__name__}, whose head does not read the states of a decoder; give a "
            "reward model on a decoder-only language model"
        )
    model.config.pad_token_id = pad_id
    install_rewards(model, rules, pad_id)
    return model


def install_rewards(model: nn.Module, rules: RewardRules, pad_id: int) -> None:
    """Teach a one-label sequence classifier (or one wrapped by PEFT) to answer ``rewards=True``.

    The answer holds ``rewards`` (rows,), in float32 or better, and the pooled ``features`` (rows, hidden), detached:
    what closed forms of the head's gradient need. Every other call is answered as before.

    Args:
        model: changed in place.
        rules: how it reads.
        pad_id: the id that batches are padded with.
    """
    base: Any = unwrap_peft(model)
    for module in base.score.modules():  # PEFT wraps the head
        if isinstance(module, nn.Linear):
            replace_forward(module, _WIDE, _wide_linear)

    def forward(self: Any, *args: Any, rewards: bool = False, **kwargs: Any) -> Any:
        if not rewards:
            return earlier_forward(self, _REWARDS)(*args, **kwargs)
        input_ids, mask = kwargs["input_ids"], kwargs["attention_mask"]
        positions = {}
        if rules.padding_side == "left" and rules.variant == "paper":  # released: padding shifts absolute positions
            positions["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        body = getattr(self, self.base_model_prefix)
        hidden: Tensor = body(input_ids=input_ids, attention_mask=mask, use_cache=False, **positions)[0]
        features = _pooled(hidden, input_ids, mask, rules, pad_id)
        scored = self.score(features).squeeze(-1)
        return {"rewards": scored, "features": features.detach()}

    replace_forward(base, _REWARDS, forward)


def head_size(model: nn.Module) -> int:
    """Return the length of the features."""
    config: Any = unwrap_peft(model).config
    return int(config.get_text_config().hidden_size)


def _pooled(hidden: Tensor, input_ids: Tensor, mask: Tensor, rules: RewardRules, pad_id: int) -> Tensor:
    if rules.pooling in BY_ID:
        return states_at(hidden, pooled_index(input_ids, pad_id, rules.pooling))
    if rules.variant == "released":
        return released_pool(
            hidden, input_ids, mask, rules.pooling, pad_token_id=pad_id, padding_side=rules.padding_side
        )
    return pool(hidden, mask, rules.pooling)


def _wide_linear(self: nn.Linear, features: Tensor) -> Tensor:
    """W · h + b in float32 or better, however the weights are held: differences of rewards need more than 8 bits."""
    wide = torch.promote_types(features.dtype, torch.float32)
    with torch.autocast(features.device.type, enabled=False):
        bias = None if self.bias is None else self.bias.to(wide)
        return nn.functional.linear(features.to(wide), self.weight.to(wide), bias)
