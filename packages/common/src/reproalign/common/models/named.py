"""The models that a configuration names, looked for before anything is loaded."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from reproalign.common.config.model import LoadedModelConfig, ReferenceWeightsConfig
from reproalign.common.models.load import model_path


def check_named_models(config: Any, prefix: str = "") -> None:
    """Refuse folders of models, tokenizers and references that are not there or hold none; the Hub is not asked.

    Args:
        config: of a verb, an object of its structured configuration.
        prefix: of the keys.

    Raises:
        UserError: naming the key.
    """
    keys: tuple[str, ...] = ()
    if isinstance(config, LoadedModelConfig):
        keys = ("name", "tokenizer")
    elif isinstance(config, ReferenceWeightsConfig):
        keys = ("model",)
    for key in keys:
        name = getattr(config, key)
        if name and not name.startswith(("demo:", "tiny:")):  # which would be made
            model_path(name, f"{prefix}{key}")
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            check_named_models(value, f"{prefix}{field.name}.")
