"""Whether models read text alike: tokenizers and chat templates compared by content, not by file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from reproalign.common.errors import UserError, first_line
from reproalign.common.merging.adapted import AdaptedCheckpoint
from reproalign.common.merging.inputs import Model
from reproalign.common.merging.settings import MergeSettings

MARKS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "spiece.model")


def check_tokenizers(models: Sequence[Model], settings: MergeSettings, template: Path) -> list[str]:
    """Compare the tokenizers and chat templates of all models.

    A model without tokenizer files cannot be compared, and one without a template says nothing against that of another;
    both are noted.

    Returns:
        Notes for the user.

    Raises:
        UserError: if they differ and ``allow`` does not name it.
    """
    loaded = {}
    notes = []
    folders = {model.folder: (model.base if isinstance(model, AdaptedCheckpoint) else model).label for model in models}
    # An adapter that was trained with a tokenizer or template of its own has it beside it.
    beside = {model.adapter.folder: model.adapter.label for model in models if isinstance(model, AdaptedCheckpoint)}
    for folder, label in (folders | beside).items():
        if any((folder / mark).is_file() for mark in MARKS):
            loaded[label] = load_tokenizer(label, folder)
        elif folder in folders:
            notes.append(f"'{label}' has no tokenizer to compare")
    if not loaded:
        return notes
    (first, reference), *others = loaded.items()
    for label, tokenizer in others:
        difference = tokenizer_difference(reference, tokenizer)
        if difference:
            text = f"the tokenizers of '{first}' and '{label}' differ: {difference}"
            _accept("tokenizer", text, settings, template, notes)
    templates = {label: tokenizer.chat_template for label, tokenizer in loaded.items() if tokenizer.chat_template}
    if len({json.dumps(text, sort_keys=True) for text in templates.values()}) > 1:
        _accept("chat_template", f"the chat templates of {_quoted(templates)} differ", settings, template, notes)
    lacking = [label for label in loaded if label not in templates]
    if templates and lacking:
        notes.append(
            f"{_quoted(templates)} {_have(templates)} a chat template, {_quoted(lacking)} {_have(lacking)} none: what "
            f"{template} has is written"
        )
    return notes


def load_tokenizer(label: str, folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder.

    Raises:
        UserError: if transformers cannot.
    """
    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # files of all ages and kinds fail in all ways
        raise UserError(f"'{label}': its tokenizer cannot be loaded: {first_line(error)}") from error


def tokenizer_difference(first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase) -> str | None:
    """Say how two tokenizers differ in what they do, or None: vocabulary, special and added tokens, merges, rules."""
    left, right = first.get_vocab(), second.get_vocab()
    if left != right:
        token = min(
            (token for token in left.keys() | right.keys() if left.get(token) != right.get(token)),
            key=lambda token: min(left.get(token, 1 << 40), right.get(token, 1 << 40)),
        )
        places = f"{left.get(token)} and {right.get(token)}"
        return f"{len(left)} and {len(right)} tokens, the first difference being {token!r} ({places})"
    special = [{name: str(token) for name, token in one.special_tokens_map.items()} for one in (first, second)]
    for name in sorted(special[0].keys() | special[1].keys()):
        if special[0].get(name) != special[1].get(name):
            return f"{name} is {special[0].get(name)!r} and {special[1].get(name)!r}"
    added = [{index: repr(token) for index, token in one.added_tokens_decoder.items()} for one in (first, second)]
    if added[0] != added[1]:
        return "their added tokens"
    rules = [_rules(one) for one in (first, second)]
    differing = sorted(key for key in rules[0].keys() | rules[1].keys() if rules[0].get(key) != rules[1].get(key))
    return f"{', '.join(differing)} in tokenizer.json" if differing else None


def _rules(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return {}
    rules: dict[str, Any] = json.loads(backend.to_str())
    # How texts are cut and filled is set anew by every caller; added tokens are compared by themselves.
    return {key: value for key, value in rules.items() if key not in ("truncation", "padding", "added_tokens")}


def _accept(what: str, text: str, settings: MergeSettings, template: Path, notes: list[str]) -> None:
    if what not in settings.allow:
        raise UserError(f"{text}; add allow=[{what}] to write that of the base or first model (files_from: of another)")
    notes.append(f"{text}: that of {template} is written")


def _quoted(labels: Any) -> str:
    return ", ".join(f"'{label}'" for label in labels)


def _have(labels: Any) -> str:
    return "has" if len(labels) == 1 else "have"
