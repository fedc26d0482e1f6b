"""What is made of opened inputs: a model, an adapter or an ensemble, laid out before anything is written."""

from __future__ import annotations

from pathlib import Path

import torch

from reproalign.common.merging.adapted import AdaptedCheckpoint
from reproalign.common.merging.adapter_merge import MergedAdapter, factor_delta_gap, merge_adapters
from reproalign.common.merging.blocks import Block, Blocks, check_selector
from reproalign.common.merging.ensemble import EnsemblePlan, plan_ensemble
from reproalign.common.merging.headers import read_json
from reproalign.common.merging.inputs import Inputs
from reproalign.common.merging.methods import task_arithmetic_weights
from reproalign.common.merging.planning import MergePlan, make_plan
from reproalign.common.merging.settings import MergeSettings, normalized_weights
from reproalign.common.merging.values import evaluate, selectors
from reproalign.common.models.load import model_path

Made = MergePlan | MergedAdapter | EnsemblePlan


def plan_merge(settings: MergeSettings, inputs: Inputs) -> Made:
    """Check that opened models can be merged as the settings say, and lay out the work; nothing is written.

    Raises:
        UserError: if they cannot.
    """
    if settings.method == "ensemble":
        return plan_ensemble(settings)
    if inputs.adapters:
        return merge_opened_adapters(settings, inputs)
    plan = make_plan(settings, inputs)
    plan.agreement.notes += _spaces(settings, inputs)
    return plan


def _spaces(settings: MergeSettings, inputs: Inputs) -> list[str]:
    """Say of adapters that become a model in which space that is, and how far the other one would be."""
    adapters = [model.adapter for model in inputs.models if isinstance(model, AdaptedCheckpoint)]
    if len(adapters) < 2 or len(adapters) < len(inputs.models):
        return []
    weights = [weight for weight in settings.weights if isinstance(weight, float)]
    if settings.method != "linear" or len(weights) < len(adapters):
        weights = [1 / len(adapters)] * len(adapters)
    gap = factor_delta_gap(adapters, normalized_weights(settings, weights, "the adapters"))
    found = "they have no factor average" if gap is None else f"factor-delta gap of their average {gap:.3g}"
    return [f"space: delta (adapters folded into their base); {found}"]


def merge_opened_adapters(settings: MergeSettings, inputs: Inputs) -> MergedAdapter:
    """Merge opened adapters into one, with weights by tensor as the settings say.

    Raises:
        UserError: if they cannot be merged.
    """
    blocks = _base_blocks(settings, inputs) if any(map(selectors, settings.weights)) else None
    dtype: torch.dtype = getattr(torch, settings.wide)

    def weights_of(name: str) -> tuple[float, ...]:
        block = Block("other") if blocks is None else blocks.block(name)
        layers = 0 if blocks is None else blocks.layers
        given = [evaluate(setting, name, block, layers, "weights") for setting in settings.weights]
        weights = normalized_weights(settings, given, name)
        if settings.method == "task_arithmetic":  # what is added to the base is all that an adapter holds
            return task_arithmetic_weights(weights, settings.scale)[1:]
        return weights

    return merge_adapters(inputs.adapters, weights_of, space=settings.space or "delta", rank=settings.rank, dtype=dtype)


def _base_blocks(settings: MergeSettings, inputs: Inputs) -> Blocks:
    """Read the blocks off the base that the adapters name, which only ``parts`` needs."""
    name = settings.base or inputs.adapters[0].base
    blocks = Blocks(read_json(Path(model_path(name, "base")) / "config.json"), name)
    placed = [(tensor, blocks.block(tensor)) for adapter in inputs.adapters for tensor in adapter.modules]
    for selector in {selector for setting in settings.weights for selector in selectors(setting)}:
        check_selector(selector, blocks.layers, placed)
    return blocks
