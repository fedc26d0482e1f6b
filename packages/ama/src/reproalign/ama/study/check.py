"""What a check of a claim is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reproalign.ama.study.findings import Effect, measure_effect
from reproalign.ama.study.results import Results, Values

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Check:
    """What a check is made of.

    Attributes:
        results: the points.
        entry: its keys in ``paper.yaml``.
        confidence: of the intervals.
    """

    results: Results
    entry: Entry
    confidence: float

    def effect(
        self, label: str, metric: str, compute: Callable[[Values], float], condition: str, **keys: Any
    ) -> Effect:
        """Measure one instance."""
        return measure_effect(self.results, label, metric, compute, condition, self.confidence, **keys)

    def pairs(self, indices: Sequence[int], metric: str) -> Callable[[Values], Values]:
        """Return what takes (reward, task) of some points from a matrix of values."""
        column = self.results.column(metric)
        rows = list(indices)
        return lambda values: values[rows][:, [0, column]]

    def gap(self, one: int, other: int, metric: str) -> Callable[[Values], float]:
        """Return what takes the difference of two points in a metric."""
        column = self.results.column(metric)
        return lambda values: float(values[one, column] - values[other, column])

    def reference(self, algorithm: str, metric: str) -> tuple[float, float] | None:
        """Return the reference of hypervolumes: θ_0's reward, and the worse score of θ and θ_0; None if unknown."""
        results = self.results
        ends = [index for index in (results.post(algorithm), results.pre(algorithm)) if index is not None]
        if len(results.known(ends, metric)) < 2:
            return None
        return float(results.values[ends[1], 0]), float(results.values[ends, results.column(metric)].min())

    def chosen(self, algorithm: str) -> tuple[list[int], list[str]]:
        """Return the points of ``methods`` that the check is about, and what is missing; of sweeps without ends."""
        found: list[int] = []
        missing = []
        for method in self.entry["methods"]:
            if method == "hma":
                sweep = self.results.sweep(algorithm, method)
                points = [index for index in sweep if 0 < (self.results.points[index].alpha or 0) < 1]
            else:
                points = self.results.find(method=method, algorithm=algorithm)
            found += points
            missing += [] if points else [f"no {method} of {algorithm}"]
        return found, missing
