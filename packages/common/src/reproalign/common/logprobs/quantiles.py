"""Quantiles of rows over a vocabulary: by selection, without a sort and without ``torch.quantile``'s limit of 2^24
elements.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


@torch.no_grad()
def upper_tail(
    values: Float[Tensor, "tokens vocab"], weights: Float[Tensor, "tokens vocab"], mass: float
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, "tokens vocab"]]:
    r"""The part of each row's distribution that holds its largest values.

    With G(x) = Σ_v w(v) 1[d(v) > x]: the quantile is q = inf{x : G(x) <= mass}, and the share of an entry in the tail
    is 1 above q, 0 below, (mass - G(q)) / Σ_v w(v) 1[d(v) = q] on the atom at q, so that Σ_v w(v) share(v) = mass.
    Both are constants to autograd, which is right for Σ w share d (envelope theorem).

    Some passes over the row bracket q, then the few entries inside the bracket are sorted: exact, without a full sort.

    Args:
        values: d.
        weights: w >= 0, each row adding up to 1.
        mass: in (0, 1]; 1 takes everything.

    Returns:
        q and the shares.

    Raises:
        ValueError: for a mass outside (0, 1].
    """
    if not 0 < mass <= 1:
        raise ValueError(f"mass must be in (0, 1], got {mass}")
    if mass == 1:
        return values.amin(1), torch.ones_like(values)
    rows = max(1, _BLOCK // values.shape[1]) if values.device.type == "cpu" else max(1, len(values))
    quantiles, shares = values.new_empty(len(values)), torch.empty_like(values)
    for start in range(0, len(values), rows):
        part = slice(start, start + rows)
        quantiles[part] = _upper_tail(values[part], weights[part], mass, shares[part])
    return quantiles, shares


_BLOCK = 2**20  # entries that stay in a CPU's cache over several passes, and are worth a call of an operation
_FEW = 16  # the search ends when no bracket holds more than 1/16 of its row


def _upper_tail(values: Tensor, weights: Tensor, mass: float, share: Tensor) -> Tensor:
    """Write the shares and return the quantiles."""
    low, high, mass_high = _bracket(values, weights, mass, share)
    row, column = ((values > low[:, None]) & (values <= high[:, None])).nonzero(as_tuple=True)
    counts = torch.bincount(row, minlength=len(values))
    place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    size = (len(values), max(1, int(counts.max())))  # 1: NaN is in no bracket
    inside = values.new_full(size, -torch.inf).index_put_((row, place), values[row, column])
    inside, order = inside.sort(dim=1, descending=True)
    masses = values.new_zeros(size).index_put_((row, place), weights[row, column]).gather(1, order)
    reached = masses.cumsum(1) + mass_high[:, None] >= mass
    index = torch.where(
        reached.any(1), reached.int().argmax(1), (counts - 1).clamp(min=0)
    )  # the last one where rounding hides it
    quantile = inside.gather(1, index[:, None])
    above = mass_high + torch.where(inside > quantile, masses, 0.0).sum(1)
    atom = torch.where(inside == quantile, masses, 0.0).sum(1)
    on_atom = ((mass - above) / atom).clamp(0.0, 1.0)
    torch.gt(values, quantile, out=share)
    share.addcmul_(torch.eq(values, quantile, out=torch.empty_like(share)), on_atom[:, None])
    return quantile.squeeze(1)


def _bracket(values: Tensor, weights: Tensor, mass: float, buffer: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return low < q <= high with few entries between them, and G(high).

    In turns at the middle of the bracket, and where G would be ``mass`` if it were straight in it. A comparison written
    as 0.0 and 1.0 into ``buffer`` makes masses and counts fast reductions (on a CPU ten times as fast as by a mask).
    """
    low, high = values.amin(1), values.amax(1)
    low = torch.nextafter(low, low - 1)
    mass_low, mass_high = torch.ones_like(low), torch.zeros_like(low)
    count_low, count_high = torch.full_like(low, values.shape[1]), torch.zeros_like(low)
    for step in range(24):
        straight = low + (high - low) * ((mass_low - mass) / (mass_low - mass_high)).clamp(0.02, 0.98)
        pivot = straight if step % 2 else (low + high) / 2
        torch.gt(values, pivot[:, None], out=buffer)
        mass_pivot, count_pivot = torch.linalg.vecdot(weights, buffer), buffer.sum(1)
        left = mass_pivot <= mass  # q is at the pivot or below
        high, low = torch.where(left, pivot, high), torch.where(left, low, pivot)
        mass_high, mass_low = torch.where(left, mass_pivot, mass_high), torch.where(left, mass_low, mass_pivot)
        count_high, count_low = torch.where(left, count_pivot, count_high), torch.where(left, count_low, count_pivot)
        if bool((count_low - count_high).max() * _FEW <= values.shape[1]):
            break
    return low, high, mass_high


def linear_quantile(values: Float[Tensor, "tokens vocab"], level: float) -> Float[Tensor, " tokens"]:
    """Unweighted quantile of each row with linear interpolation: what ``torch.quantile`` computes, at any size.

    Between the order statistics v_(k) and v_(k+1), counted from 0, with k + f = level · (n - 1): (1 - f) v_(k) +
    f v_(k+1). Differentiable in both.

    Raises:
        ValueError: for a level outside [0, 1].
    """
    if not 0 <= level <= 1:
        raise ValueError(f"level must be in [0, 1], got {level}")
    position = level * (values.shape[1] - 1)
    index, fraction = int(position), position - int(position)
    lower = values.kthvalue(index + 1, dim=1).values
    if fraction == 0:
        return lower
    greater = values > lower[:, None]
    following = torch.where(greater, values, torch.inf).amin(1)
    tied = (~greater).sum(1) > index + 1
    return torch.lerp(lower, torch.where(tied, lower, following), fraction)
