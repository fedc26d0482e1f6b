"""Proposition 5.1: what averaging two models that use overlapping features does to their accuracy.

The model of the paper's appendix F (after Lin et al., 2023, "Spurious Feature Diversification Improves
Out-of-distribution Generalization"): an example of one of K classes shows n features; each shows the example's class
with probability 1 - p, and otherwise a class drawn uniformly from all K. A model adds the features it has learned,
with weights w, into one score for each class and answers the highest. Of two models with n features each, n_o are
shared, and the averages weigh a feature (up to a common factor)

    single    1 on its own n
    output    the outputs are averaged: 2 on the shared ones, 1 on the 2 (n - n_o) others
    weight    weights and feature masks are averaged (Definition F.2): 4 on the shared ones, 1 on the others
    disjoint  weight averaging, for a task that the other model has not learned: 2 on the shared ones, 1 on its others

With d_k the score of the right class less that of class k, a feature of weight 1 has E d_k = 1 - p and covariance M,

    M_kk = p (K + 2 - p K) / K,    M_jk = p (K + 1 - p K) / K,

so that for many features the accuracy is F_p((1 - p) Σw / √Σw²), F_p(x) = P(η > 0), η ~ N(x 1, M) in K - 1 dimensions:

    single    F_p((1-p) √n)
    output    F_p(√2 (1-p) n / √(n + n_o))               the paper's closed form
    weight    F_p(√2 (1-p) (n + n_o) / √(n + 7 n_o))     what its Definition F.2 gives
    disjoint  F_p((1-p) (n + n_o) / √(n + 3 n_o))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

SINGLE, OUTPUT, WEIGHT, DISJOINT = FORMS = ("single", "output", "weight", "disjoint")
_CHUNK = 50_000


@dataclass(frozen=True)
class Setting:
    """One case of the proposition.

    Attributes:
        classes: K, at least 2.
        p: chance that a feature shows a random class, in (0, 1].
        features: n, of each model.
        overlap: n_o, in [0, n].
    """

    classes: int
    p: float
    features: int
    overlap: int


@dataclass(frozen=True)
class Accuracy:
    """A simulated accuracy, beside the closed form, and its gain over the single model on the same examples.

    Attributes:
        value: share of examples that are answered rightly; k classes tied at the top count as 1/k.
        stderr: its standard error over examples.
        closed: the Gaussian closed form.
        gain: value less the single model's.
        gain_stderr: of the paired difference.
    """

    value: float
    stderr: float
    closed: float
    gain: float
    gain_stderr: float


def gaussian_accuracy(x: float, classes: int, p: float) -> float:
    """Return F_p(x) = P(η_1 > 0, …, η_{K-1} > 0) for η ~ N(x·1, M) (R16).

    By symmetry that is the normal distribution function at x·1 with covariance M, which scipy integrates.

    Args:
        x: mean of each coordinate.
        classes: K, at least 2.
        p: in (0, 1].

    Returns:
        In [0, 1]; for x = 0 it is 1/K.
    """
    from scipy.stats import multivariate_normal

    size = classes - 1
    shared = p * (classes + 1 - p * classes) / classes
    covariance = np.full((size, size), shared) + np.eye(size) * p / classes
    # The integration is random beyond two dimensions; its seed is fixed so that a number is the same every time.
    found = multivariate_normal(np.zeros(size), covariance, seed=0).cdf(np.full(size, x))
    return float(found)


def closed_forms(setting: Setting) -> dict[str, float]:
    """Return the accuracies for many features (R16), by :data:`FORMS`."""
    n, shared = setting.features, setting.overlap
    arguments = {
        SINGLE: np.sqrt(n),
        OUTPUT: np.sqrt(2) * n / np.sqrt(n + shared),
        WEIGHT: np.sqrt(2) * (n + shared) / np.sqrt(n + 7 * shared),
        DISJOINT: (n + shared) / np.sqrt(n + 3 * shared),
    }
    return {
        name: gaussian_accuracy((1 - setting.p) * float(x), setting.classes, setting.p) for name, x in arguments.items()
    }


def simulate(setting: Setting, samples: int, seed: int) -> dict[str, Accuracy]:
    """Draw examples, and answer them by a single model and by each average.

    All forms see the same examples, so that their differences are paired. A setting's draws depend on the seed and the
    setting alone, not on the others of a sweep.

    Args:
        setting: the case.
        samples: number of examples, at least 2.
        seed: of the draws.
    """
    shares = np.full(setting.classes, setting.p / setting.classes)
    shares[0] += 1 - setting.p
    generator = np.random.default_rng(
        [seed, setting.classes, setting.features, setting.overlap, round(setting.p * 1e9)]
    )
    own = setting.features - setting.overlap
    sums, squares, products = (np.zeros(len(FORMS)) for _ in range(3))
    for start in range(0, samples, _CHUNK):
        size = min(_CHUNK, samples - start)
        shared, first, second = (generator.multinomial(count, shares, size) for count in (setting.overlap, own, own))
        scores = (shared + first, 2 * shared + first + second, 4 * shared + first + second, 2 * shared + first)
        credit = np.stack([_credit(found) for found in scores])
        sums += credit.sum(axis=1)
        squares += (credit**2).sum(axis=1)
        products += (credit * credit[0]).sum(axis=1)
    return _accuracies(sums, squares, products, samples, closed_forms(setting))


def _credit(scores: Int[np.ndarray, "examples classes"]) -> Float[np.ndarray, " examples"]:
    """Return 1 where class 0 has the highest score alone, 1/k where it is one of k at the top, and 0 elsewhere."""
    top = scores.max(axis=1, keepdims=True)
    credit: Float[np.ndarray, " examples"] = (scores[:, 0] == top[:, 0]) / (scores == top).sum(axis=1)
    return credit


def _accuracies(
    sums: Float[np.ndarray, " forms"],
    squares: Float[np.ndarray, " forms"],
    products: Float[np.ndarray, " forms"],
    samples: int,
    closed: Mapping[str, float],
) -> dict[str, Accuracy]:
    means = sums / samples
    variances = squares / samples - means**2
    # Var(a - b) = E (a - b)² - (E a - E b)², from sums alone.
    gaps = means - means[0]
    gap_variances = (squares - 2 * products + squares[0]) / samples - gaps**2
    errors, gap_errors = (np.sqrt(np.maximum(found, 0) / samples) for found in (variances, gap_variances))
    return {
        name: Accuracy(float(means[i]), float(errors[i]), closed[name], float(gaps[i]), float(gap_errors[i]))
        for i, name in enumerate(FORMS)
    }
