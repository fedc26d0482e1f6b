"""Words that several verbs give to their child runs: how a model is trained, and how one is held to be evaluated."""

from __future__ import annotations

from dataclasses import asdict, replace

from reproalign.common.config.model import LoraConfig, ModelConfig
from reproalign.common.options.words import as_word, section_words


def training_words(model: ModelConfig) -> list[str]:
    """Return the words for a training from ``model``: its adapters all said, since `dtm train` has some by default."""
    given = asdict(model.lora) if model.lora.enabled else {"enabled": False}
    adapters = [as_word(f"model.lora.{key}", value) for key, value in given.items()]
    return [*section_words("model", replace(model, lora=LoraConfig())), *adapters]


def evaluation_words(model: ModelConfig, name: str) -> list[str]:
    """Return the words for an evaluation of ``name``, held as the base ``model`` is."""
    revision = model.revision if name == model.name else None
    return section_words("model", replace(model.loaded(), name=name, revision=revision))
