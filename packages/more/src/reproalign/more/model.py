"""The reward model: a causal language model's body with a linear head w of one output, r(x, y) = w · pool(h).

It is held and saved as ``transformers``' sequence classifier of one label, whose head has the same shape and place in
every architecture. :func:`install_rewards` puts our pooling into its ``forward``, on which DDP, FSDP, DeepSpeed and
accelerate's autocast act. How a model was trained to read a text stands beside its weights, in ``reward.json``.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedTokenizerBase

from reproalign.common.data.templates import set_template
from reproalign.common.errors import UserError, choose
from reproalign.common.logprobs.model import causal_lm
from reproalign.common.training.models import Model, load_reward_model, load_tokenizer, model_path
from reproalign.more.config import RewardModelConfig, TextConfig
from reproalign.more.pooling import POOLINGS, pool, released_pool
from reproalign.more.text import LAYOUTS

NOTE = "reward.json"
_ORIGINAL = "_reproalign_classifier_forward"  # where a changed classifier keeps its own forward


@dataclass(frozen=True)
class RewardRules:
    """How a reward model reads a text.

    Attributes:
        pooling: see :func:`reproalign.more.pooling.pool`.
        layout: ``transcript`` or ``chat``.
        variant: ``released`` pools as the release does.
        padding_side: where batches are padded.
    """

    pooling: str
    layout: str
    variant: str
    padding_side: str


def reward_rules(model: RewardModelConfig, text: TextConfig, variant: str) -> RewardRules:
    """Return the configured rules, with those the model was trained with where null leaves them open.

    Raises:
        UserError: for unknown values, or a ``reward.json`` that cannot be read.
    """
    trained = _read_note(model.name, model.revision)
    return RewardRules(
        pooling=choose("model.pooling", model.pooling or trained.get("pooling", "last"), POOLINGS),
        layout=choose("layout", text.layout or trained.get("layout", "transcript"), LAYOUTS),
        variant=choose("variant", variant, ["paper", "released"]),
        padding_side=choose("padding_side", text.padding_side, ["left", "right"]),
    )


def check_trained(config: RewardModelConfig) -> None:
    """Refuse a model whose head would be random.

    Raises:
        UserError: for a language model, or a classifier of several labels.
    """
    path = model_path(config.name)
    if (Path(path) / "adapter_config.json").is_file():
        return
    try:
        found = AutoConfig.from_pretrained(path, revision=config.revision, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load the model '{config.name}': {str(error).splitlines()[0]}") from error
    names = found.architectures or []
    if not any("SequenceClassification" in name for name in names) or found.num_labels != 1:
        raise UserError(
            f"model.name={config.name} is no reward model but {', '.join(names) or 'of no known kind'}; give the model "
            "folder of a `more-rm train` run, or another sequence classifier with one label"
        )


def reward_note(rules: RewardRules) -> dict[str, Any]:
    """Return what is saved as ``reward.json``."""
    return asdict(rules)


def load_reward_tokenizer(config: RewardModelConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer of ``config``, with the configured chat template, and a pad token (EOS if it has none)."""
    tokenizer = load_tokenizer(config)
    if config.chat_template:
        set_template(tokenizer, config.chat_template)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_reward(
    config: RewardModelConfig, tokenizer: PreTrainedTokenizerBase, rules: RewardRules, pad_id: int
) -> Model:
    """Load a reward model that answers ``rewards=True`` (:func:`install_rewards`).

    Of a language model the body is taken and the head begins at w ~ N(0, initializer_range²); of a saved reward model
    (or an adapter of one) the head as well.

    Args:
        config: the weights, and how they are held.
        tokenizer: of the same model.
        rules: how it reads.
        pad_id: the id that batches are padded with.
    """
    model = load_reward_model(config, tokenizer)
    model.config.pad_token_id = pad_id
    install_rewards(model, rules, pad_id)
    return model


def install_rewards(model: nn.Module, rules: RewardRules, pad_id: int) -> None:
    """Teach a one-label sequence classifier (or one wrapped by PEFT) to answer ``rewards=True``.

    The answer holds ``rewards`` (rows,), in float32 or better, and the pooled ``features`` (rows, hidden), detached:
    what the closed form of the head's gradient needs (:func:`reproalign.more.loss.domain_sums`). Every other call is
    answered as before.
    """
    base: Any = causal_lm(model)
    base.__dict__.setdefault(_ORIGINAL, base.forward)

    def forward(self: Any, *args: Any, rewards: bool = False, **kwargs: Any) -> Any:
        if not rewards:
            return self.__dict__[_ORIGINAL](*args, **kwargs)
        input_ids, mask = kwargs["input_ids"], kwargs["attention_mask"]
        positions = {}
        if rules.padding_side == "left" and rules.variant == "paper":  # released: padding shifts absolute positions
            positions["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        body = getattr(self, self.base_model_prefix)
        hidden: Tensor = body(input_ids=input_ids, attention_mask=mask, use_cache=False, **positions)[0]
        if rules.variant == "released":
            side = rules.padding_side
            features = released_pool(hidden, input_ids, mask, rules.pooling, pad_token_id=pad_id, padding_side=side)
        else:
            features = pool(hidden, mask, rules.pooling)
        with torch.autocast(features.device.type, enabled=False):  # 8 bits are too few for differences of rewards
            scored = self.score(features.to(_dtype(self.score))).squeeze(-1)
        wide = torch.promote_types(scored.dtype, torch.float32)
        return {"rewards": scored.to(wide), "features": features.detach()}

    base.forward = MethodType(forward, base)


def head_size(model: nn.Module) -> int:
    """Return the length of the features."""
    config: Any = causal_lm(model).config
    return int(config.get_text_config().hidden_size)


def _dtype(head: nn.Module) -> torch.dtype:
    return next(parameter.dtype for parameter in head.parameters())


def _read_note(name: str, revision: str | None) -> dict[str, Any]:
    folder = Path(model_path(name))
    path: Path | None = folder / NOTE if folder.is_dir() else _hub_note(name, revision)
    if path is None or not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path} is not valid JSON ({error}); delete it, and set model.pooling and the layout"
        ) from error
    return content if isinstance(content, dict) else {}


def _hub_note(name: str, revision: str | None) -> Path | None:
    try:
        return Path(hf_hub_download(name, NOTE, revision=revision))
    except Exception:  # a language model has none; a model that cannot be reached is spoken of when it is loaded
        return None
