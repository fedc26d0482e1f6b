"""Sums and averages of low-rank changes s B A, none of which is formed as a whole matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from reproalign.common.merging import methods
from reproalign.common.merging.adapters import Factors


def average_factors(parts: Sequence[Factors], weights: Sequence[float], dtype: torch.dtype) -> Factors:
    """Average A and B each on its own (DTM R4); all have the same scaling."""
    a = methods.linear([part.a.to(dtype) for part in parts], weights)
    b = methods.linear([part.b.to(dtype) for part in parts], weights)
    return replace(parts[0], a=a, b=b)


def stack_deltas(
    parts: Sequence[Factors], weights: Sequence[float], *, rank: int | None, dtype: torch.dtype
) -> Factors:
    """Return factors of Σ_j w_j s_j B_j A_j: B = [w_1 s_1/s B_1, …], A = [A_1; …], with the first one's scaling s.

    Their product is DTM R3.

    Parts with equal A share their rows, B_1 and B_2 being added then: copies of one adapter give that adapter, and so
    do adapters that were trained with a frozen A. A ``rank`` below that of the sum takes its best approximation.
    """
    scaling = parts[0].scaling
    columns: list[list[Tensor]] = []
    rows: list[Tensor] = []
    factors: list[list[float]] = []
    for part, weight in zip(parts, weights, strict=True):
        place = next((index for index, a in enumerate(rows) if torch.equal(a, part.a)), None)
        if place is None:
            rows.append(part.a)
            columns.append([])
            factors.append([])
            place = len(rows) - 1
        same = next((index for index, b in enumerate(columns[place]) if torch.equal(b, part.b)), None)
        share = weight * (part.scaling / scaling)
        if same is None:
            columns[place].append(part.b)
            factors[place].append(share)
        else:
            factors[place][same] += share
    sums = [
        methods.linear([b.to(dtype) for b in group], _snapped(shares))
        for group, shares in zip(columns, factors, strict=True)
    ]
    stacked = replace(parts[0], a=torch.cat([a.to(dtype) for a in rows]), b=torch.cat(sums, dim=1))
    return stacked if rank is None or rank >= stacked.a.shape[0] else recompress(stacked, rank)


def recompress(factors: Factors, rank: int) -> Factors:
    """Best approximation of B A of a lower rank, by QR of both factors and an SVD of the small core, in float64.

    B = Q_B R_B, Aᵀ = Q_A R_A, R_B R_Aᵀ = U S Vᵀ (R × R for the stacked rank R), and B A ≈ (Q_B U √S)(√S Vᵀ Q_Aᵀ) with
    the ``rank`` largest entries of S; nothing of the size of the weight is formed.
    """
    q_b, r_b = torch.linalg.qr(factors.b.double())
    q_a, r_a = torch.linalg.qr(factors.a.double().mT)
    u, s, vt = torch.linalg.svd(r_b @ r_a.mT)
    root = s[:rank].sqrt()
    return replace(
        factors,
        b=(q_b @ u[:, :rank] * root).to(factors.b.dtype),
        a=(root[:, None] * vt[:rank] @ q_a.mT).to(factors.a.dtype),
    )


def product_norm(left: Sequence[Float[Tensor, "rows _"]], right: Sequence[Float[Tensor, "_ columns"]]) -> float:
    """Frobenius norm of Σ_i left_i right_i, through triangular factors: the product itself is never formed."""
    b, a = torch.cat([part.double() for part in left], dim=1), torch.cat([part.double() for part in right])
    return float(torch.linalg.matrix_norm(torch.linalg.qr(b, mode="r")[1] @ torch.linalg.qr(a.mT, mode="r")[1].mT))


def _snapped(shares: Sequence[float]) -> list[float]:
    """Shares of K copies sum to 1 up to the last bits of 1/K; taken as 1, so that copies of an adapter are itself."""
    return [1.0 if abs(share - 1.0) < 1e-12 else share for share in shares]
