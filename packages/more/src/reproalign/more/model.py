"""The reward model: a causal language model's body with a linear head w of one output, r(x, y) = w · pool(h).

It is held and saved as ``transformers``' sequence classifier of one label, whose head has the same shape and place in
every architecture. :func:`install_rewards` puts our pooling into its ``forward``, on which DDP, FSDP, DeepSpeed and
accelerate's autocast act. How a model was trained to read a text stands beside its weights, in ``reward.json``.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedTokenizerBase

from reproalign.common.config import ModelConfig
from reproalign.common.data.templates import set_template
from reproalign.common.errors import UserError, choose
from reproalign.common.models.adapters import Model
from reproalign.common.models.forward import earlier_forward, replace_forward, unwrap_peft
from reproalign.common.models.load import load_reward_model, load_tokenizer, model_path
from reproalign.more.balance import VARIANTS
from reproalign.more.config import RewardModelConfig, TextConfig
from reproalign.more.pooling import POOLINGS, pool, released_pool
from reproalign.more.text import LAYOUTS

NOTE = "reward.json"
_REWARDS, _WIDE = "rewards", "wide"  # the changes to forwards


@dataclass(frozen=True)
class RewardRules:
    """How a reward model reads a text.

    Attributes:
        pooling: see :func:`reproalign.more.pooling.pool`.
        variant: ``released`` has the release's special tokens and pools as it does.
        layout: ``transcript`` or ``chat``.
        max_length: tokens of a text.
        truncation_side: which end of an over-long text is lost.
        padding_side: where batches are padded.
    """

    pooling: str = "last"
    variant: str = "paper"
    layout: str = "transcript"
    max_length: int = 512
    truncation_side: str = "left"
    padding_side: str = "right"

    def text(self) -> dict[str, Any]:
        """Return the fields of :class:`TextConfig`."""
        return {field.name: getattr(self, field.name) for field in fields(TextConfig)}


def reward_rules(model: RewardModelConfig, text: TextConfig, variant: str | None) -> RewardRules:
    """Return the configured rules; where null leaves them open those that the model was trained with, if it was.

    Raises:
        UserError: for unknown values, or a ``reward.json`` that cannot be read.
    """
    given = {
        "pooling": model.pooling,
        "variant": variant,
        **{f.name: getattr(text, f.name) for f in fields(TextConfig)},
    }
    told = {name: value for name, value in given.items() if value is not None}
    trained = _read_note(model.name, model.revision)
    known = {field.name: trained[field.name] for field in fields(RewardRules) if field.name in trained}
    rules = RewardRules(**{**known, **told})
    choose("model.pooling", rules.pooling, POOLINGS)
    choose("variant", rules.variant, VARIANTS)
    choose("layout", rules.layout, LAYOUTS)
    for name in ("truncation_side", "padding_side"):
        choose(name, getattr(rules, name), ["left", "right"])
    return rules


def check_trained(config: RewardModelConfig) -> None:
    """Refuse a model whose head would be random.

    Raises:
        UserError: for a language model, or a classifier of several labels.
    """
    kind, heads = _kind(config)
    if kind != "reward" or heads != 1:
        raise UserError(
            f"model.name={config.name} is no reward model with one output, but {_what(kind, heads)}; give the model "
            "folder of a `more-rm train` run, or another sequence classifier with one label"
        )


def check_language_model(config: ModelConfig) -> None:
    """Refuse a reward model where a language model is needed, whose head would be random.

    Raises:
        UserError: if it is one.
    """
    if _kind(config)[0] == "reward":
        raise UserError(f"model.name={config.name} is a reward model; give a language model")


def _kind(config: ModelConfig) -> tuple[str, int]:
    """Return ``reward``, ``language`` or another architecture, and the number of a classifier's labels."""
    path = model_path(config.name)
    try:
        adapter = Path(path) / "adapter_config.json"
        if adapter.is_file():
            task = json.loads(adapter.read_text(encoding="utf-8")).get("task_type")
            return ("reward", 1) if task == "SEQ_CLS" else ("language", 0)
        found = AutoConfig.from_pretrained(path, revision=config.revision, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load the model '{config.name}': {str(error).splitlines()[0]}") from error
    names = found.architectures or [""]
    if "SequenceClassification" in names[0]:
        return "reward", found.num_labels
    return ("language" if "CausalLM" in names[0] or "LMHead" in names[0] else names[0] or "unknown"), 0


def _what(kind: str, heads: int) -> str:
    return f"one with {heads}" if kind == "reward" else f"a {kind} model"


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
        if rules.variant == "released":
            side = rules.padding_side
            features = released_pool(hidden, input_ids, mask, rules.pooling, pad_token_id=pad_id, padding_side=side)
        else:
            features = pool(hidden, mask, rules.pooling)
        scored = self.score(features).squeeze(-1)
        return {"rewards": scored, "features": features.detach()}

    replace_forward(base, _REWARDS, forward)


def head_size(model: nn.Module) -> int:
    """Return the length of the features."""
    config: Any = unwrap_peft(model).config
    return int(config.get_text_config().hidden_size)


def _wide_linear(self: nn.Linear, features: Tensor) -> Tensor:
    """W · h in float32 or better, whatever the weights are held in: differences of rewards need more than 8 bits."""
    wide = torch.promote_types(features.dtype, torch.float32)
    with torch.autocast(features.device.type, enabled=False):
        return nn.functional.linear(features.to(wide), self.weight.to(wide))


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
