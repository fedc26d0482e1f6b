"""Preference records and dialogues as text, by the tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import Dataset, Features, Value
from transformers import PreTrainedTokenizerBase

from reproalign.common.config.data import PreparingConfig
from reproalign.common.config.text import DialogueTextConfig, PairTextConfig
from reproalign.common.data.cache import fingerprint_dataset, fingerprint_tokenizer, map_cached
from reproalign.common.text.templates import render, render_completion, with_system


def render_pairs(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    text: PairTextConfig,
    data: PreparingConfig,
    *,
    sides: Sequence[str] = ("chosen", "rejected"),
    generation: bool = False,
) -> Dataset:
    """Render records as text with the chat template: ``prompt`` (all turns before), and the responses in ``sides``.

    With ``generation`` the header of the assistant's turn ends the prompt, else it begins the response.

    Under ``boundary=released`` responses are rendered on their own, as the release does; else as what the whole
    dialogue has beyond the prompt. Text records stay as they are.
    """
    alone = text.boundary == "released"

    def build(record: Mapping[str, Any]) -> dict[str, str]:
        if isinstance(record["prompt"], str):
            return {name: record[name] for name in ("prompt", *sides)}
        prompt = with_system(record["prompt"], text.system_message, str(tokenizer.chat_template))
        return {
            "prompt": render(tokenizer, prompt, generation=generation),
            **{
                name: render_completion(tokenizer, prompt, record[name], alone=alone, generation=generation)
                for name in sides
            },
        }

    features = text_features(dataset, sides)
    options = [*sides, generation, text.system_message, text.boundary]
    return _map(dataset, tokenizer, data, "render_pairs", build, features, options=options)


def render_messages(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, text: DialogueTextConfig, data: PreparingConfig
) -> Dataset:
    """Render whole dialogues (``messages``) as ``text`` with the chat template, after ``text.system_message``."""

    def build(record: Mapping[str, Any]) -> dict[str, str]:
        dialogue = with_system(record["messages"], text.system_message, str(tokenizer.chat_template))
        return {"text": render(tokenizer, dialogue)}

    features = Features({"text": Value("string")})
    rows = dataset.select_columns("messages")
    options = [text.system_message]
    return _map(rows, tokenizer, data, "render_messages", build, features, options=options, drop="messages")


def text_features(dataset: Dataset, sides: Sequence[str] = ("chosen", "rejected")) -> Features:
    """Return the features of rendered pairs: text in place of messages, everything else as it was."""
    text = {name: Value("string") for name in ("prompt", *sides)}
    return Features({**dataset.features, **text})


def _map(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    data: PreparingConfig,
    stage: str,
    build: Callable[[Any], dict[str, Any]],
    features: Features,
    options: Sequence[Any] = (),
    drop: str | None = None,
) -> Dataset:
    parts = [
        stage,
        *options,
        fingerprint_dataset(dataset),
        fingerprint_tokenizer(tokenizer),
    ]
    return map_cached(
        dataset,
        build,
        parts,
        cache_dir=data.cache_dir,
        num_proc=data.num_proc,
        desc=stage.replace("_", " "),
        features=features,
        remove_columns=drop,
    )
