"""What a model is, before it is loaded: reward model or language model, whose missing head would be random; Gemma 1."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from peft import PeftConfig
from transformers import AutoConfig

from reproalign.common.config.model import LoadedModelConfig, ReferenceWeightsConfig
from reproalign.common.errors import UserError
from reproalign.common.models.adapters import adapter_folder
from reproalign.common.models.ensemble_file import is_ensemble
from reproalign.common.models.load import model_path, unreadable

Config = TypeVar("Config", bound=LoadedModelConfig)


def model_kind(config: LoadedModelConfig, key: str = "model.name") -> tuple[str, int]:
    """Return ``reward``, ``language`` or the name of another architecture, and the number of a classifier's labels.

    Args:
        config: of the model, or of an adapter.
        key: the option that names it.

    Raises:
        UserError: if its configuration cannot be read.
    """
    path = model_path(config.name, key)
    if is_ensemble(path):
        return "language", 0
    try:
        adapter = Path(path) / "adapter_config.json"
        if adapter.is_file():
            task = json.loads(adapter.read_text(encoding="utf-8")).get("task_type")
            return ("reward", 1) if task == "SEQ_CLS" else ("language", 0)
        found = AutoConfig.from_pretrained(path, revision=config.revision, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError) as error:
        raise unreadable("model", config.name, error) from error
    names = found.architectures or [""]
    if "SequenceClassification" in names[0]:
        return "reward", found.num_labels
    return ("language" if "CausalLM" in names[0] or "LMHead" in names[0] else names[0] or "unknown"), 0


def with_gemma_numerics(config: Config, default: str | None) -> Config:
    """Return ``config`` of a Gemma 1 with ``default`` for its ``gemma_numerics`` if that is null.

    Args:
        config: of the model, or of an adapter of it.
        default: as the option; None: leave it.
    """
    if config.gemma_numerics is not None or default is None or not _is_gemma(config):
        return config
    return replace(config, gemma_numerics=default)


def _is_gemma(config: LoadedModelConfig) -> bool:
    path = model_path(config.name)
    try:
        if adapter := adapter_folder(path):
            path = model_path(str(PeftConfig.from_pretrained(str(adapter)).base_model_name_or_path))
        found = AutoConfig.from_pretrained(path, revision=config.revision, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError):
        return False  # the loader says what is wrong
    return bool(found.model_type == "gemma")


def check_reward_model(config: LoadedModelConfig, key: str = "model.name") -> None:
    """Refuse a model whose reward head would be random.

    Raises:
        UserError: for a language model, or a classifier of several labels.
    """
    kind, heads = model_kind(config, key)
    if kind != "reward" or heads != 1:
        what = f"one with {heads}" if kind == "reward" else f"a {kind} model"
        raise UserError(
            f"{key}={config.name} is no reward model with one output, but {what}; give the model folder of a run that "
            "trained one, or another sequence classifier with one label"
        )


def check_policies(model: LoadedModelConfig, reference: ReferenceWeightsConfig) -> None:
    """Refuse a reward model for a policy, or for the reference that it is compared with.

    Raises:
        UserError: naming the key.
    """
    check_language_model(model)
    if reference.model is not None:
        other = replace(model, name=reference.model, revision=reference.revision)
        check_language_model(other, "reference.model")


def check_language_model(config: LoadedModelConfig, key: str = "model.name") -> None:
    """Refuse a reward model where a language model is needed, whose head would be random.

    Args:
        config: of the model.
        key: the option that names it.

    Raises:
        UserError: if it is one.
    """
    if model_kind(config, key)[0] == "reward":
        raise UserError(f"{key}={config.name} is a reward model; give a language model")
