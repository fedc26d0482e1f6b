"""The ratios that are allowed, {mean = α, 0 <= α_g <= 1, as close to each other as ε says} (R3), in K - 1 unknowns.

The ratios that eq. 11 can reach under ε are those with α_g = c h_g, h_g in [ε, 1 + ε]: a scale c with
c ε <= α_g <= c (1 + ε) for all groups. That is linear in (α, c), so that ε is a linear constraint here too: ε = 0 asks
for nothing but a common sign, and a large ε for equal ratios. The last group with a share in the mean follows from the
others, which keeps the mean to the last bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Region:
    """Allowed ratios of K groups: Ω (R3), and what ε leaves of it.

    Attributes:
        base: α, the mean.
        weights: what each group counts for in the mean; they sum to one.
        epsilon: ε.
        bounded: no ratio is above 1.
    """

    base: float
    weights: Sequence[float]
    epsilon: float
    bounded: bool

    @property
    def follower(self) -> int:
        """The group that follows from the others."""
        return max(index for index, weight in enumerate(self.weights) if weight > 0)

    @property
    def start(self) -> Vector:
        """Unknowns of equal ratios: those of the other groups, and the scale c, for which h is in the middle."""
        return np.array([self.base] * (len(self.weights) - 1) + [self.base / (0.5 + self.epsilon)])

    def ratios(self, unknowns: Sequence[float] | Vector) -> list[float]:
        """Return all ratios; where rounding has left the region, they are drawn towards α until they are back in it."""
        free = [float(value) for value in unknowns[: len(self.weights) - 1]]
        place = self.follower
        others = [weight for index, weight in enumerate(self.weights) if index != place]
        rest = sum(weight * (value - self.base) for weight, value in zip(others, free, strict=True))
        moved = [value - self.base for value in free]
        moved.insert(place, -rest / self.weights[place])
        scale = 1.0
        for step in moved:
            room = (1 - self.base if self.bounded else np.inf) if step > 0 else self.base
            scale = min(scale, room / abs(step)) if step else scale
        return [self.base + scale * step for step in moved]

    def reduce(self, gradient: Sequence[float]) -> Vector:
        """Return the gradient in the unknowns of a function whose gradient in the ratios is given."""
        place = self.follower
        parts = [
            entry - weight / self.weights[place] * gradient[place]
            for index, (entry, weight) in enumerate(zip(gradient, self.weights, strict=True))
            if index != place
        ]
        return np.array([*parts, 0.0])

    def constraints(self) -> tuple[Matrix, Vector]:
        """Return M and b of the linear constraints M u + b >= 0 on the unknowns u, the scale among them."""
        transform, offset = self._transform()
        count = len(offset)
        wide = np.concatenate([transform, np.zeros((count, 1))], axis=1)
        scale = np.zeros((1, count))
        scale[0, -1] = 1.0
        rows = [wide - self.epsilon * scale, (1 + self.epsilon) * scale - wide]
        constants = [offset, -offset]
        if self.bounded:
            rows.append(-wide)
            constants.append(1.0 - offset)
        return np.concatenate(rows), np.concatenate(constants)

    def pairwise(self) -> tuple[Matrix, Vector]:
        """Return the same constraints without the scale: (1 + ε) α_g - ε α_h >= 0 for every two groups."""
        transform, offset = self._transform()
        count = len(offset)
        pairs = [(one, other) for one in range(count) for other in range(count) if one != other]
        rows = [(1 + self.epsilon) * transform[one] - self.epsilon * transform[other] for one, other in pairs]
        constants = [(1 + self.epsilon) * offset[one] - self.epsilon * offset[other] for one, other in pairs]
        if self.bounded:
            rows += list(-transform)
            constants += list(1.0 - offset)
        return np.array(rows), np.array(constants)

    def _transform(self) -> tuple[Matrix, Vector]:
        """Return T and t of α = T u + t, u without the scale."""
        count, place = len(self.weights), self.follower
        transform = np.insert(np.eye(count - 1), place, 0.0, axis=0)
        free = [weight for index, weight in enumerate(self.weights) if index != place]
        transform[place] = [-weight / self.weights[place] for weight in free]
        offset = np.zeros(count)
        offset[place] = self.base / self.weights[place]
        return transform, offset


def pull_inside(unknowns: Vector, start: Vector, rows: Matrix, constants: Vector) -> Vector:
    """Return the point nearest to ``unknowns`` on the way there from ``start``, allowed itself, with M u + b >= 0."""
    at_start = rows @ start + constants
    change = rows @ (unknowns - start)
    # Only what would leave the region is divided: a step may be too small to divide by.
    limits = [max(room, 0.0) / -step for room, step in zip(at_start, change, strict=True) if room + step < 0]
    point: Vector = start + min([1.0, *limits]) * (unknowns - start)
    return point
