"""Clusters of equal size: the assignment step of k-means with a capacity for every cluster.

``k-means-constrained`` solves the same with a network-flow library that pins old versions of others. With few clusters
and many rows the dual of the problem, one price per cluster, is small enough to be solved directly; what is left of a
gap to the bound is closed by exchanging rows around cycles of clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

SAMPLE = 20_000  # rows on which prices are found first
SWEEPS, FULL_SWEEPS = 50, 4  # over the prices: on the sample, on all rows
EXCHANGES = 1000  # cycles at most
ENOUGH = 1e-6  # relative gap at which no cycle is looked for
ZERO = -1e-12  # a cycle that costs less than this is an improvement, and no rounding

Costs = Float[NDArray[np.float64], "rows clusters"]
Labels = Int[NDArray[np.int64], " rows"]


@dataclass(frozen=True)
class Assignment:
    """Labels, and how far their cost is from the least possible one.

    Attributes:
        labels: of the rows.
        cost: Σ_i c[i, label_i].
        bound: no assignment within the capacity costs less.
    """

    labels: Labels
    cost: float
    bound: float

    @property
    def gap(self) -> float:
        """Distance from the bound, as a share of the cost: 0 if the labels are optimal."""
        return max(0.0, (self.cost - self.bound) / abs(self.cost)) if self.cost else 0.0


def capacity_of(rows: int, clusters: int) -> int:
    """Return the most rows of a cluster: ⌈n / K⌉."""
    return -(-rows // clusters)


def balanced_assignment(costs: Costs) -> Assignment:
    """Assign each row to a cluster at the least total cost, with at most ⌈n / K⌉ rows in each.

    Prices p ≥ 0 on the clusters make the problem separate: max_p Σ_i min_k (c[i, k] + p_k) − capacity Σ_k p_k bounds
    the cost from below, and rows take their cheapest cluster at these prices. Each price in turn is set to the least
    one at which no more than the capacity want its cluster (as in the auction algorithm, Bertsekas 1988). What is still
    above the capacity moves where it costs least. While the gap to the bound is above 10⁻⁶, rows are exchanged around
    cycles of clusters; without such a cycle that lowers the cost, the labels are optimal.

    Args:
        costs: c, e.g. squared distances.
    """
    rows, clusters = costs.shape
    capacity = capacity_of(rows, clusters)
    sample = costs[:: max(1, rows // SAMPLE)]
    prices = _prices(sample, capacity * len(sample) / rows, np.zeros(clusters), SWEEPS)
    prices = _prices(costs, capacity, prices, FULL_SWEEPS if len(sample) < rows else 0)
    priced = costs + prices
    bound = float(priced.min(axis=1).sum() - capacity * prices.sum())
    labels = priced.argmin(axis=1)
    _unload(labels, priced, capacity)
    cost = _total(costs, labels)
    for _ in range(EXCHANGES):
        if cost - bound <= ENOUGH * abs(cost):
            break
        if not _exchange(labels, costs, capacity):
            bound = _total(costs, labels)
        cost = _total(costs, labels)
    return Assignment(labels, cost, bound)


def _total(costs: Costs, labels: Labels) -> float:
    return float(costs[np.arange(len(costs)), labels].sum())


def _prices(
    costs: Costs, capacity: float, start: Float[NDArray[np.float64], " clusters"], sweeps: int
) -> Float[NDArray[np.float64], " clusters"]:
    rows, clusters = costs.shape
    prices, kept = start.copy(), int(capacity)
    if rows <= kept:
        return prices
    for _ in range(sweeps):
        before = prices.copy()
        for cluster in range(clusters):
            priced = costs + prices
            priced[:, cluster] = np.inf
            # By how much a row prefers the cluster to its next best: it wants it at any price below that.
            preference = priced.min(axis=1) - costs[:, cluster]
            prices[cluster] = max(0.0, np.partition(preference, rows - kept - 1)[rows - kept - 1])
        if np.array_equal(prices, before):
            break
    return prices


def _unload(labels: Labels, priced: Costs, capacity: int) -> None:
    """Move rows out of clusters above the capacity into those below, the least costly moves first, in place."""
    clusters = priced.shape[1]
    while True:
        sizes = np.bincount(labels, minlength=clusters)
        if sizes.max() <= capacity:
            return
        rows = np.flatnonzero(sizes[labels] > capacity)
        open_costs = np.where(sizes < capacity, priced[rows], np.inf)
        targets = open_costs.argmin(axis=1)
        regret = open_costs[np.arange(len(rows)), targets] - priced[rows, labels[rows]]
        room, excess = capacity - sizes, np.maximum(sizes - capacity, 0)
        for place in np.argsort(regret, kind="stable"):
            row, target = rows[place], targets[place]
            if excess[labels[row]] and room[target] > 0:
                excess[labels[row]] -= 1
                room[target] -= 1
                labels[row] = target
                if not excess.any():
                    return


def _exchange(labels: Labels, costs: Costs, capacity: int) -> bool:
    """Move one row along each step of a cycle of clusters that lowers the cost, in place; False if there is none."""
    clusters = costs.shape[1]
    steps = np.full((clusters, clusters), np.inf)
    movers = np.full((clusters, clusters), -1)
    for cluster in range(clusters):
        rows = np.flatnonzero(labels == cluster)
        if len(rows):
            change = costs[rows] - costs[rows, cluster][:, None]
            best = change.argmin(axis=0)
            steps[cluster], movers[cluster] = change[best, np.arange(clusters)], rows[best]
        if len(rows) < capacity:  # room can be handed on instead of a row, for nothing
            movers[cluster] = np.where(steps[cluster] > 0, -1, movers[cluster])
            steps[cluster] = np.minimum(steps[cluster], 0)
    cycle = _negative_cycle(steps)
    for here, there in zip(cycle, [*cycle[1:], *cycle[:1]], strict=True):
        if movers[here, there] >= 0:
            labels[movers[here, there]] = there
    return bool(cycle)


def _negative_cycle(steps: Float[NDArray[np.float64], "clusters clusters"]) -> list[int]:
    """Return the clusters of a cycle whose steps sum to less than nothing (Bellman–Ford); none if there is none."""
    clusters = len(steps)
    distance, before = np.zeros(clusters), np.full(clusters, -1)
    relaxed = -1
    for _ in range(clusters):
        relaxed = -1
        for here in range(clusters):
            through = distance[here] + steps[here]
            better = np.flatnonzero(through < distance + ZERO)
            distance[better], before[better] = through[better], here
            relaxed = int(better[-1]) if len(better) else relaxed
        if relaxed < 0:
            return []
    for _ in range(clusters):
        relaxed = int(before[relaxed])
    cycle = [relaxed]
    while (at := int(before[cycle[-1]])) != relaxed:
        cycle.append(at)
    return cycle[::-1]
