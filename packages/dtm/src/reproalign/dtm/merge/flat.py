"""``variant=released``: adapters read as flat vectors, merged by :mod:`~reproalign.dtm.merge.released`, written back.

Adapters are small (some 90 MB at 7B), so whole vectors are kept in memory. Names, shapes and configurations are checked
before, by the core's merge, which also measures how far the factor average is from the delta average.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from reproalign.common.errors import UserError, choose
from reproalign.common.merging import methods
from reproalign.common.merging.adapter_merge import MergedAdapter, merge_adapters
from reproalign.common.merging.adapters import WEIGHTS, load_tensors
from reproalign.common.merging.inputs import Inputs
from reproalign.common.merging.randomness import keep_mask
from reproalign.dtm.merge.config import AGGREGATIONS, MergeConfig
from reproalign.dtm.merge.core import dropped
from reproalign.dtm.merge.released import (
    basic_merging,
    flatten,
    normalized,
    ties,
    unflatten,
)
from reproalign.dtm.merge.settings import SubModelMergePlan

Vectors = Float[Tensor, "models entries"]


def check_released(plan: SubModelMergePlan) -> None:
    """Check the keys that only this variant reads.

    Raises:
        UserError: for one that is wrong, or has no meaning beside the others.
    """
    config = plan.config
    mode = config.aggregation or ("weighted" if config.method == "average" else "dis-mean")
    if config.method == "average":
        choose("aggregation of method=average", mode, AGGREGATIONS)
    if plan.weights is not None and mode != "weighted" and config.method in ("average", "ties"):
        raise UserError(f"weights have no meaning for aggregation={mode}; remove them, or set aggregation=weighted")
    if config.density is not None and config.norm_fraction is not None:
        raise UserError("density and norm_fraction both say what TIES keeps; remove one")


def merge_flat(plan: SubModelMergePlan, inputs: Inputs) -> MergedAdapter:
    """Merge adapters as the authors' scripts do.

    Args:
        plan: of a released merge.
        inputs: its adapters, opened.

    Raises:
        UserError: if they do not agree, or the initial adapter is not theirs.
    """
    config, adapters = plan.config, inputs.adapters
    shares = normalized(plan.weights or [1.0] * len(adapters)) if config.method == "average" else None
    equal = [1.0 / len(adapters)] * len(adapters)
    checked = merge_adapters(adapters, lambda _: shares or equal, space="factor", rank=None, dtype=torch.float32)
    states = [load_tensors(adapter.file) for adapter in adapters]
    for adapter, state in zip(adapters, states, strict=True):
        if state.keys() != states[0].keys():
            name = min(state.keys() ^ states[0].keys())
            raise UserError(
                f"'{adapters[0].label}' and '{adapter.label}' differ in tensor '{name}'; they cannot be merged"
            )
    notes = list(checked.notes)
    if config.method == "average":
        tensors = basic_merging(config.aggregation or "weighted", states, shares)
    else:
        vectors = torch.stack([flatten(state) for state in states])
        start = _start(config.initial, states[0], vectors)
        if config.initial is None:
            notes.append("initial is not set: the factors themselves are the task vectors (θ_0 = 0)")
        tensors = unflatten(_task_vectors(config, plan.weights, start, vectors), states[0])
    average = config.method == "average" and config.aggregation in (None, "weighted", "mean")
    return replace(
        checked,
        tensors=tensors,
        error=checked.error if average else None,
        manifest=checked.manifest if average else {},
        notes=notes,
    )


def _task_vectors(
    config: MergeConfig, weights: Sequence[float] | None, start: Float[Tensor, " entries"], vectors: Vectors
) -> Float[Tensor, " entries"]:
    """θ_0 + λ · what the method makes of τ_j = θ_j - θ_0."""
    scale = 1.0 if config.scale is None else config.scale
    given = list(weights or [1.0] * len(vectors))
    if config.method == "task_arithmetic":
        return methods.linear([start, *vectors], methods.task_arithmetic_weights(given, scale))
    differences = vectors - start
    if config.method == "ties":
        merged = ties(
            differences,
            density=0.2 if config.density is None else config.density,
            norm_fraction=config.norm_fraction,
            zeros=config.zero_signs or "majority",
            mode=config.aggregation or "dis-mean",
            ratios=given,
        )
        return methods.linear([start, merged], (1.0, scale))
    density = 1 - dropped(config)
    sparse = [
        methods.drop_and_rescale(vector, keep_mask(config.seed, "adapter", model, 0, len(vector), density), density)
        for model, vector in enumerate(differences)
    ]
    shares = given if config.normalize is False else normalized(given)
    return methods.dare_linear(start, sparse, shares, scale=scale)


def _start(initial: str | None, state: dict[str, Tensor], vectors: Vectors) -> Float[Tensor, " entries"]:
    if initial is None:
        return torch.zeros_like(vectors[0])
    folder = Path(initial).expanduser()
    tensors = load_tensors(folder / WEIGHTS if folder.is_dir() else folder)
    shapes = [{name: tensor.shape for name, tensor in entry.items()} for entry in (tensors, state)]
    if shapes[0] != shapes[1]:
        raise UserError(f"initial={initial}: its tensors are not those of the adapters; give the adapter at step 0")
    return flatten(tensors).to(vectors.dtype)
