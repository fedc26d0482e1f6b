"""A text classifier whose probability of one label scores texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from accelerate import PartialState
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from reproalign.common.data.records import Message
from reproalign.common.errors import choose
from reproalign.common.models.load import model_path, unreadable
from reproalign.radpo.config import ClassifierConfig


def label_column(config: ClassifierConfig) -> int:
    """Return which of the classifier's outputs ``config.label`` is, from its configuration alone.

    Raises:
        UserError: if that cannot be read, or has no such label.
    """
    path = model_path(config.name, "classifier.name")
    try:
        found = AutoConfig.from_pretrained(path, revision=config.revision)
    except (OSError, ValueError, KeyError) as error:
        raise unreadable("classifier", config.name, error) from error
    labels = {str(label): int(index) for index, label in found.id2label.items()}
    return labels[choose("classifier.label", config.label, labels)]


def load_classifier(config: ClassifierConfig) -> Callable[[Sequence[list[Message]]], list[float]]:
    """Load the classifier; what is returned maps texts, in one or more turns, to the probability of ``config.label``.

    A text longer than the model can read loses its end. Texts of like length share a forward.

    Raises:
        UserError: if the weights cannot be read, or the classifier has no such label.
    """
    path = model_path(config.name, "classifier.name")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=config.revision)
        model = AutoModelForSequenceClassification.from_pretrained(path, revision=config.revision, use_safetensors=True)
    except (OSError, ValueError, KeyError) as error:
        raise unreadable("classifier", config.name, error) from error
    column = label_column(config)
    model = model.to(PartialState().device).eval()
    limit = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 512) - 2)

    @torch.no_grad()
    def score(dialogues: Sequence[list[Message]]) -> list[float]:
        texts = ["".join(turn["content"] for turn in dialogue) for dialogue in dialogues]
        scores = [0.0] * len(texts)
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        for start in range(0, len(order), config.batch_size):
            some = order[start : start + config.batch_size]
            inputs = tokenizer(
                [texts[index] for index in some], return_tensors="pt", padding=True, truncation=True, max_length=limit
            )
            probabilities = model(**inputs.to(model.device)).logits.float().softmax(1)[:, column]
            for index, value in zip(some, probabilities.tolist(), strict=True):
                scores[index] = value
        return scores

    return score
