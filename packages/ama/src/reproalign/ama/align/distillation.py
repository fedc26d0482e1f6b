r"""Distillation from θ_0, and the KL penalty: how far the next-token distributions are from those before training.

With π the model's distribution after a prefix and p that of θ_0, over the vocabulary v,

    kl    KL(p ‖ π) = Σ_v p (log p - log π)      distillation as released (temperature 1, so T² = 1)
    mse   ‖π - p‖² = Σ_v (π - p)²                distillation as the paper prints it
    reverse        KL(π ‖ p)                     the KL penalty of RLHF (eq. 10), here on given texts

at every position of the row, prompt and last position included. ``row`` sums over the positions and divides by the
number of rows alone, as the release's "batchmean" does on (rows, positions, vocabulary), so that λ grows with the
length; ``token`` divides by the number of positions. The paper adds its penalty to an objective that is maximised;
what is meant, and done in its code and here, is to add it to the loss. Logits of all positions never exist at once.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def squared_distance(
    difference: Float[Tensor, "tokens vocab"], reference: Float[Tensor, "tokens vocab"]
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, "tokens vocab"]]:
    r"""Return Σ_v (π - p)² (R13) and its slope in d, as a :data:`reproalign.common.logprobs.statistics.Measure`.

    With d = log p - log π it is π = p e^{-d}, dπ/dd = -π and so ∂/∂d Σ (π - p)² = 2 π (p - π). An entry of
    log p = -∞ counts for nothing.

    Args:
        difference: d.
        reference: log p.
    """
    policy = (reference - difference).exp()  # through logarithms: e^{-d} alone could overflow
    policy = torch.where(reference.isneginf(), 0.0, policy)
    away = policy - reference.exp()
    return away.square().sum(1), -2 * policy * away


def distance(values: Float[Tensor, " positions"], rows: int, reduction: str, weight: float) -> Float[Tensor, ""]:
    """Return the penalty of a micro-batch (R13), which the trainer averages over micro-batches and processes.

    Args:
        values: the distance at every position of every row.
        rows: of the micro-batch.
        reduction: ``row``: sum over positions / rows; ``token``: mean over positions.
        weight: λ.
    """
    return weight * (values.sum() / rows if reduction == "row" else values.mean())


def all_positions(
    input_ids: Int[Tensor, "rows seq"], attention_mask: Int[Tensor, "rows seq"]
) -> dict[str, Int[Tensor, "rows longer"]]:
    """Return model inputs whose ``completion_mask`` scores the distribution after *every* token of every row.

    A model scores what predicts a token, so a column that nothing attends to is added after the last; what stands in it
    does not matter.
    """
    one = attention_mask.new_ones(len(attention_mask), 1)
    return {
        "input_ids": torch.cat([input_ids, input_ids[:, -1:]], dim=1),
        "attention_mask": torch.cat([attention_mask, one], dim=1),
        "completion_mask": torch.cat([one, attention_mask], dim=1),
    }
