"""``method=ensemble``: no weights are merged, a folder names the models whose logits are averaged when it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedTokenizerBase

from reproalign.common.config.model import LoadedModelConfig
from reproalign.common.errors import UserError, first_line
from reproalign.common.merging.headers import read_json
from reproalign.common.merging.inputs import local_folder
from reproalign.common.merging.output import copy_files
from reproalign.common.merging.settings import MergeSettings, normalized_weights
from reproalign.common.merging.tokenizer_check import MARKS, load_tokenizer, tokenizer_difference
from reproalign.common.models.adapters import adapter_folder
from reproalign.common.models.ensemble_file import write_ensemble
from reproalign.common.models.load import load_causal_lm


@dataclass(frozen=True)
class EnsemblePlan:
    """An ensemble to be written.

    Attributes:
        members: names of the models.
        weights: α_j, which sum to 1.
        base: of adapters; None: what they name.
        template: folder whose tokenizer and generation files are copied.
        notes: for the user.
    """

    members: tuple[str, ...]
    weights: tuple[float, ...]
    base: str | None
    template: Path
    notes: list[str]


def plan_ensemble(settings: MergeSettings) -> EnsemblePlan:
    """Check that models can answer together: one architecture, one vocabulary.

    Raises:
        UserError: if they cannot, naming two of them.
    """
    tokenizers: dict[str, tuple[Path, PreTrainedTokenizerBase]] = {}
    shapes: dict[str, tuple[str, int]] = {}
    adapted = False
    for name in settings.models:
        folder = local_folder(name, "models")
        adapter = adapter_folder(str(folder))
        adapted = adapted or adapter is not None
        base = local_folder(settings.base or _base(adapter), "base") if adapter else folder
        shapes[name] = _shape(name, base)
        place = next((path for path in (folder, base) if any((path / mark).is_file() for mark in MARKS)), None)
        if place is not None:
            tokenizers[name] = place, load_tokenizer(name, place)
    if settings.base is not None and not adapted:
        raise UserError("base has no meaning for an ensemble of full models; remove it")
    _check_shapes(shapes)
    weights = [weight for weight in settings.weights if isinstance(weight, float)]
    if len(weights) < len(settings.models):
        raise UserError("weights: an ensemble has one number for each model; remove gradients and filters")
    return EnsemblePlan(
        members=settings.models,
        weights=normalized_weights(settings, weights, "the ensemble"),
        base=settings.base,
        template=next(iter(tokenizers.values()))[0] if tokenizers else local_folder(settings.models[0], "models"),
        notes=_compare(settings, tokenizers),
    )


def write_files(folder: Path, plan: EnsemblePlan) -> None:
    """Write ``ensemble.json`` and the tokenizer's files."""
    copy_files(plan.template, folder)
    write_ensemble(folder, plan.members, plan.weights, plan.base)


def verify_ensemble(folder: Path, how: str) -> str:
    """Load the ensemble on the CPU and ask it for logits; with ``how=headers`` do not.

    Raises:
        UserError: if the members cannot be loaded, or do not belong together.
        RuntimeError: if the logits are not finite.
    """
    if how == "headers":
        return "not loaded"
    model = load_causal_lm(LoadedModelConfig(name=str(folder)), trainable=False)
    ids = torch.arange(3, 7)[None] % int(model.config.get_text_config().vocab_size)
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    if not bool(logits.isfinite().all()):
        raise RuntimeError("the ensemble's logits are not finite")
    return "loaded"


def _base(adapter: Path | None) -> str:
    assert adapter is not None
    return str(read_json(adapter / "adapter_config.json").get("base_model_name_or_path"))


def _shape(name: str, folder: Path) -> tuple[str, int]:
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"models: cannot read the configuration of '{name}': {first_line(error)}") from error
    return str(config.model_type), int(config.get_text_config().vocab_size)


def _check_shapes(shapes: dict[str, tuple[str, int]]) -> None:
    (first, (kind, rows)), *others = shapes.items()
    for name, (other, count) in others:
        if other != kind:
            raise UserError(f"'{first}' is a {kind} and '{name}' a {other}: an ensemble needs one architecture")
        if count != rows:
            raise UserError(
                f"'{first}' has a vocabulary of {rows} and '{name}' one of {count}: their logits cannot be averaged"
            )


def _compare(settings: MergeSettings, tokenizers: dict[str, tuple[Path, PreTrainedTokenizerBase]]) -> list[str]:
    if not tokenizers:
        return []
    (first, (_, reference)), *others = tokenizers.items()
    notes = []
    for name, (_, tokenizer) in others:
        difference = tokenizer_difference(reference, tokenizer)
        if difference and "tokenizer" not in settings.allow:
            raise UserError(
                f"the tokenizers of '{first}' and '{name}' differ: {difference}; add allow=[tokenizer] to use the first"
            )
        notes += [f"the tokenizers of '{first}' and '{name}' differ: {difference}"] if difference else []
    return notes
