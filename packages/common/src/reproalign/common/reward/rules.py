"""How a reward model reads a text: the rules that are saved beside its weights, in ``reward.json``.

The chat template is not among them: it is the tokenizer's, and saved with it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from reproalign.common.config.model import LoadedModelConfig, LoadedRewardModelConfig
from reproalign.common.config.text import DialogueTextConfig, TextConfig
from reproalign.common.errors import UserError, did_you_mean
from reproalign.common.models.load import model_path
from reproalign.common.options import like, option, variant
from reproalign.common.options.check import check
from reproalign.common.reward.pooling import BY_ID
from reproalign.common.text.templates import check_separator

logger = logging.getLogger(__name__)

NOTE = "reward.json"
VERSION = 2  # 1 had neither a version nor system_message and special_tokens


@dataclass(frozen=True)
class RewardRules:
    r"""Everything that decides how a reward model reads a text, besides its weights and its tokenizer.

    Attributes:
        pooling: the state that the head reads: ``eos``, ``last``, ``average``, ``max``
            (:func:`~reproalign.common.reward.pooling.pool`), ``last_not_pad``, ``first_pad``
            (:func:`~reproalign.common.reward.pooling.pooled_index`).
        variant: ``released`` has the special tokens of MORE's release and pools as it does.
        layout: ``transcript`` (``\n\nHuman: …\n\nAssistant: …``), ``lmflow`` (``###Human: …###Assistant: …``) or
            ``chat`` (the tokenizer's chat template).
        max_length: tokens of a text, special tokens included, at least 3.
        truncation_side: which end of an over-long text is lost.
        padding_side: where batches are padded.
        system_message: layout ``chat``: the system turn of a dialogue that has none; None: none, ``auto``: an empty one
            where the template knows system turns, or its text.
        special_tokens: ``enclose``: BOS (if the tokenizer begins texts with it) and EOS, each once; ``own``: those that
            the tokenizer adds by itself; ``own_once``: these, but no second BOS where the template has put one.
        response_separator: of a transcript: ``space`` or ``none``, what is between the last ``Assistant:`` and the
            response. RAFT's release scores without the space that its reward model is trained with.

    Raises:
        UserError: for a value that is none of these, naming the key.
    """

    pooling: str = like(LoadedRewardModelConfig, "pooling", "last")
    variant: str = variant()
    layout: str = like(TextConfig, "layout", "transcript")
    max_length: int = like(TextConfig, "max_length", 512)
    truncation_side: str = like(TextConfig, "truncation_side", "left")
    padding_side: str = like(TextConfig, "padding_side", "right")
    system_message: str | None = like(DialogueTextConfig, "system_message", None)
    special_tokens: str = option(
        "enclose",
        help="BOS and EOS",
        choices={
            "enclose": "each once, BOS for tokenizers that begin with it",
            "own": "as the tokenizer adds them",
            "own_once": "likewise, but no second BOS",
        },
    )
    response_separator: str = like(TextConfig, "response_separator", "space")

    def __post_init__(self) -> None:
        check(RewardRules, vars(self))
        check_separator(self.layout, self.response_separator)
        if self.variant == "released" and (self.pooling in BY_ID or self.special_tokens != "enclose"):
            raise UserError(
                f"variant=released is MORE's, which does not go with pooling={self.pooling} and special_tokens="
                f"{self.special_tokens}; leave variant as the model was trained"
            )
        if self.pooling == "first_pad" and self.padding_side == "left":
            raise UserError("model.pooling=first_pad looks for padding behind the text; set padding_side=right")

    def note(self) -> dict[str, Any]:
        """Return what is saved as ``reward.json``."""
        return {"version": VERSION, **asdict(self)}


CLASSIFIER = RewardRules(
    "last_not_pad", layout="chat", max_length=2048, truncation_side="right", special_tokens="own_once"
)  # a sequence classifier that says nothing else: what transformers' own forward reads of a dialogue


def told_rules(model: LoadedRewardModelConfig, text: TextConfig, variant: str | None) -> dict[str, Any]:
    """Return the rules that options set, by name; those that are null are left open."""
    given = {"pooling": model.pooling, "variant": variant}
    given |= {field.name: getattr(text, field.name) for field in fields(TextConfig)}
    return {name: value for name, value in given.items() if value is not None}


def training_rules(model: LoadedModelConfig, told: Mapping[str, Any]) -> RewardRules:
    """Return the rules of a training: those ``told``, else those of the reward model it starts from, else the defaults.

    Raises:
        UserError: for unknown values, or a ``reward.json`` that cannot be read.
    """
    return replace(read_rules(model.name, model.revision) or RewardRules(), **told)


def scoring_rules(model: LoadedModelConfig, told: Mapping[str, Any], key: str = "model.name") -> RewardRules:
    """Return the rules by which a trained model reads: those ``told``, else those of its training.

    Of a sequence classifier without ``reward.json`` :data:`CLASSIFIER` is taken for these, and the log says so.

    Args:
        model: the reward model.
        told: rules by name.
        key: the option that names the model.

    Raises:
        UserError: for unknown values, or a ``reward.json`` that cannot be read.
    """
    trained = read_rules(model.name, model.revision)
    rules = replace(trained or CLASSIFIER, **told)
    if trained is None:
        listed = ", ".join(f"{name}={value}" for name, value in asdict(rules).items())
        logger.warning(
            "%s=%s has no %s that says how it was trained to read; it reads %s", key, model.name, NOTE, listed
        )
    return rules


def read_rules(name: str, revision: str | None) -> RewardRules | None:
    """Return the rules beside the weights of a model (a folder, or an id on the Hub); None if there are none.

    Raises:
        UserError: for a file that is no JSON, of a later version, or with a key or a value that is not known.
    """
    folder = Path(model_path(name))
    path = folder / NOTE if folder.is_dir() else _hub_note(name, revision)
    if path is None or not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path} is not valid JSON ({error}); copy it again from the run that trained the model"
        ) from error
    return _parse(content, path)


def _parse(content: Any, path: Path) -> RewardRules:
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold an object; copy it again from the run that trained the model")
    version = content.pop("version", 1)
    if version not in range(1, VERSION + 1):
        raise UserError(f"{path} has version {version}, and this reproalign reads up to {VERSION}; upgrade reproalign")
    types: dict[str, Any] = {field.name: type(field.default) for field in fields(RewardRules)}
    types["system_message"] = str | None
    for name, value in content.items():
        if name not in types:
            raise UserError(
                f"{path}: unknown rule '{name}'{did_you_mean(name, types)}; without it the model would be read in "
                "another way than it was trained; use the reproalign that wrote it"
            )
        if not isinstance(value, types[name]):
            raise UserError(f"{path}: {name}={value} must be {'a whole number' if types[name] is int else 'text'}")
    try:
        return RewardRules(**content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _hub_note(name: str, revision: str | None) -> Path | None:
    try:
        return Path(hf_hub_download(name, NOTE, revision=revision))
    except Exception:  # most models have none; one that cannot be reached is reported when it is loaded
        return None
