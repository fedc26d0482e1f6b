"""The risk measures against brute force, finite differences, each other's limits, and what makes a risk measure."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reproalign.common.logprobs.plain import differentiable
from reproalign.radpo.risk import MEASURES, CVaR, Entropic, EntropicScaled, released_distribution

Measured = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

COHERENT = [
    ("expectation", {}),
    ("cvar", {"level": 0.9}),
    ("cvar", {"level": 0.05}),
    ("cvar_complement", {"level": 0.7}),
    ("mean_semideviation", {"kappa": 0.8}),
]
CONVEX = [
    *COHERENT,
    ("entropic", {"mu": 2.0}),
    ("entropic", {"mu": 0.1}),
    ("entropic_scaled", {"mu": 5.0, "beta": 0.1}),
]
RELEASED = [("released_tail", {"level": level, "split": split}) for level in (0.95, 0.5) for split in (True, False)]
levels = st.floats(0.01, 0.99)
seeds = st.integers(0, 10_000)


def rows(tokens: int = 4, vocab: int = 13, seed: int = 0, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """d = log π_ref - log π and p = π_ref of two random distributions."""
    generator = torch.Generator().manual_seed(seed)
    ref, policy = scale * torch.randn(2, tokens, vocab, generator=generator, dtype=torch.float64)
    ref, policy = ref.log_softmax(1), policy.log_softmax(1)
    return ref - policy, ref.exp()


def measured(name: str, **parameters: float | bool) -> Measured:
    """A measure of d under p, which itself takes log p."""
    bound = MEASURES[name](**parameters)
    return lambda d, p: bound(d, p.log())


def tail_mean(d: list[float], p: list[float], mass: float) -> float:
    """Fill the mass from the largest value down."""
    left, total = mass, 0.0
    for value, weight in sorted(zip(d, p, strict=True), reverse=True):
        taken = min(weight, left)
        total += taken * value
        left -= taken
    return total / mass


@given(level=levels, seed=seeds)
def test_cvar_is_the_mean_of_the_sorted_tail(level, seed):
    """R13, by sorting."""
    d, p = rows(seed=seed)
    values, weights = measured("cvar", level=level)(d, p)
    expected = [tail_mean(row, row_p, level) for row, row_p in zip(d.tolist(), p.tolist(), strict=True)]
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(weights.sum(1), torch.ones(4, dtype=torch.float64))
    # The density of the tail is at most 1/c: the dual representation of CVaR.
    assert (weights <= p / level + 1e-12).all()


@given(level=levels, seed=seeds)
def test_cvar_is_the_largest_mean_under_a_bounded_density(level, seed):
    d, p = rows(seed=seed)
    value = measured("cvar", level=level)(d, p)[0]
    generator = torch.Generator().manual_seed(seed + 1)
    for _ in range(5):
        density = torch.rand(d.shape, generator=generator, dtype=torch.float64)
        density = density / (p * density).sum(1, keepdim=True)
        density = 1 + (density - 1) * min(1.0, (1 / level - 1) / max((density.max() - 1).item(), 1e-12))
        assert ((p * density * d).sum(1) <= value + 1e-9).all()


@given(level=levels, values=st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=2, max_size=9))
def test_cvar_with_ties_depends_on_their_total_mass_alone(level, values):
    p = torch.arange(1, len(values) + 1, dtype=torch.float64)[None]
    p = p / p.sum()
    d = torch.tensor([values], dtype=torch.float64)
    value, weights = measured("cvar", level=level)(d, p)
    assert value.item() == pytest.approx(tail_mean(values, p[0].tolist(), level), abs=1e-9)
    merged = sorted(set(values))
    masses = torch.stack([p[0][d[0] == atom].sum() for atom in merged])[None]
    merged_value, merged_weights = measured("cvar", level=level)(torch.tensor([merged], dtype=torch.float64), masses)
    torch.testing.assert_close(value, merged_value)
    per_atom = torch.stack([weights[0][d[0] == atom].sum() for atom in merged])
    torch.testing.assert_close(per_atom, merged_weights[0])


def test_a_hand_worked_tail():
    """R13, and the release's tail, by hand."""
    d = torch.tensor([[3.0, 1.0, 0.0, -2.0]], dtype=torch.float64)
    p = torch.tensor([[0.1, 0.3, 0.4, 0.2]], dtype=torch.float64)
    # Mass 1/2: all of 3 (0.1) and of 1 (0.3), and 0.1 of the 0.4 at 0.
    value, weights = measured("cvar", level=0.5)(d, p)
    assert value.item() == pytest.approx((0.1 * 3 + 0.3 * 1) / 0.5)
    torch.testing.assert_close(weights, torch.tensor([[0.2, 0.6, 0.2, 0.0]], dtype=torch.float64))
    # Entries at 1 - 0.5 of four: halfway between 0 and 1; the tail is not divided by its mass.
    value, weights = measured("released_tail", level=0.5, split=False)(d, p)
    assert value.item() == pytest.approx(0.1 * 3 + 0.3 * 1)
    torch.testing.assert_close(weights, torch.tensor([[0.1, 0.3, 0.0, 0.0]], dtype=torch.float64))
    # Halves (3, 1) and (0, -2): medians 2 and -1.
    assert measured("released_tail", level=0.5, split=True)(d, p)[0].item() == pytest.approx(0.1 * 3)
    # An odd vocabulary, (1) and (0, -2): the second half is the longer one, and only its 0 is above a median.
    weights = measured("released_tail", level=0.5, split=True)(d[:, 1:], p[:, 1:])[1]
    torch.testing.assert_close(weights, torch.tensor([[0.0, 0.4, 0.0]], dtype=torch.float64))


def test_complement_is_the_same_tail_named_by_its_quantile():
    d, p = rows()
    for left, right in zip(
        measured("cvar_complement", level=0.97)(d, p), measured("cvar", level=0.03)(d, p), strict=True
    ):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("name, parameters", CONVEX + RELEASED)
@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_weights_are_the_derivatives(name, parameters, scale):
    """R15 and every other measure: weights are dΦ/dd, by finite differences."""
    d, p = rows(seed=3, scale=scale)
    risk = measured(name, **parameters)
    assert torch.autograd.gradcheck(lambda d: differentiable(risk, d, p), d.requires_grad_())
    values = differentiable(risk, d, p)
    torch.testing.assert_close(values, risk(d.detach(), p)[0])


@pytest.mark.parametrize("name, parameters", CONVEX)
def test_axioms_of_a_convex_risk_measure(name, parameters):
    """R15 and the others: translation, monotony, convexity, between mean and worst case."""
    risk = measured(name, **parameters)
    (d, p), (other, _) = rows(seed=1), rows(seed=2)

    def value(x: Tensor) -> Tensor:
        return risk(x, p)[0]

    torch.testing.assert_close(value(d + 2.5), value(d) + 2.5)
    assert (value(torch.maximum(d, other)) >= value(d) - 1e-12).all(), "monotone"
    assert (value((d + other) / 2) <= (value(d) + value(other)) / 2 + 1e-12).all(), "convex"
    assert (value(d) >= (p * d).sum(1) - 1e-12).all(), "at least the mean"
    assert (value(d) <= d.amax(1) + 1e-12).all(), "at most the worst case"
    weights = risk(d, p)[1]
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("name, parameters", COHERENT)
def test_coherent_measures_scale(name, parameters):
    d, p = rows()
    risk = measured(name, **parameters)
    torch.testing.assert_close(risk(3 * d, p)[0], 3 * risk(d, p)[0])


@pytest.mark.parametrize("name, parameters", CONVEX)
def test_a_policy_equal_to_its_reference_has_no_risk(name, parameters):
    p = rows()[1]
    values, weights = measured(name, **parameters)(torch.zeros_like(p), p)
    torch.testing.assert_close(values, torch.zeros_like(values))
    torch.testing.assert_close(weights, p)


@pytest.mark.parametrize(
    "name, near_neutral, rtol",
    [
        ("expectation", {}, 1e-6),
        ("cvar", {"level": 1.0}, 1e-6),
        ("cvar", {"level": 1 - 1e-9}, 1e-6),
        ("cvar_complement", {"level": 1e-9}, 1e-6),
        ("entropic", {"mu": 1e-6}, 1e-4),
        ("entropic_scaled", {"mu": 1e-5, "beta": 0.1}, 1e-4),
        ("mean_semideviation", {"kappa": 1e-9}, 1e-6),
        ("released_tail", {"level": 1 - 1e-9, "split": False}, None),
    ],
)
def test_risk_neutral_limit_is_the_kl(name, near_neutral, rtol):
    """R12 is the KL, and every other measure's limit."""
    d, p = rows()
    values, weights = measured(name, **near_neutral)(d, p)
    if rtol is None:  # the strict > drops the smallest entry even at level 1
        smallest = d.argmin(1, keepdim=True)
        values = values + (p * d).gather(1, smallest).squeeze(1)
        weights = weights.scatter_add(1, smallest, p.gather(1, smallest))
    kl = torch.nn.functional.kl_div((p.log() - d), p.log(), log_target=True, reduction="none").sum(1)
    torch.testing.assert_close(values, kl, rtol=rtol or 1e-6, atol=1e-6)
    torch.testing.assert_close(weights, p, rtol=rtol or 1e-6, atol=1e-6)


def test_worst_case_limits():
    d, p = rows()
    for risk in (measured("cvar", level=1e-6), measured("entropic", mu=1e6)):
        torch.testing.assert_close(risk(d, p)[0], d.amax(1), rtol=1e-4, atol=1e-4)


@given(low=levels, high=levels, seed=seeds)
def test_a_thinner_tail_is_riskier(low, high, seed):
    d, p = rows(seed=seed)
    low, high = min(low, high), max(low, high)
    assert (measured("cvar", level=low)(d, p)[0] >= measured("cvar", level=high)(d, p)[0] - 1e-9).all()
    assert (measured("entropic", mu=10 * high)(d, p)[0] >= measured("entropic", mu=10 * low)(d, p)[0] - 1e-9).all()


def test_extreme_log_ratios_stay_finite():
    d, p = torch.tensor([[200.0, -50.0, 0.0]]), torch.tensor([[0.0, 0.5, 0.5]])
    for name, parameters in CONVEX + RELEASED:
        for result in measured(name, **parameters)(d, p):
            assert result.isfinite().all(), name


def test_an_entry_beyond_the_smallest_float_can_be_the_one_that_counts():
    # log pi_ref = -105 is 0 as a float32; d = 35 and mu = 5 make it exp(-105 + 175): (175 - 105) / 5 = 14.
    log_p = torch.tensor([[-105.0, 0.0]])
    d = torch.tensor([[35.0, 0.0]])
    value, weights = Entropic(5.0)(d, log_p)
    assert value.item() == pytest.approx(14.0, abs=1e-5)
    torch.testing.assert_close(weights, torch.tensor([[1.0, 0.0]]))


def test_entropic_is_the_renyi_divergence_of_the_reference():
    """R14 in closed form, a Rényi divergence of order 1 + μ."""
    d, p = rows()
    policy, order = p * (-d).exp(), 1 + 5.0
    renyi = (p**order * policy ** (1 - order)).sum(1).log() / (order - 1)
    torch.testing.assert_close(measured("entropic", mu=5.0)(d, p)[0], renyi)


@pytest.mark.parametrize("mu", [5.0, 7.0, 9.0])
def test_beta_leaves_a_coherent_measure_but_not_the_entropic_one(mu):
    """Φ[β d] = β Φ[d] for CVaR; for the entropic measure it is β times that of the coefficient βμ."""
    d, p = rows()
    beta = 0.1
    inside = (p * (mu * beta * d).exp()).sum(1).log() / mu
    torch.testing.assert_close(beta * measured("entropic_scaled", mu=mu, beta=beta)(d, p)[0], inside)
    assert ((beta * measured("entropic", mu=mu)(d, p)[0] - inside).abs() > 1e-3).all()
    torch.testing.assert_close(measured("cvar", level=0.9)(beta * d, p)[0], beta * measured("cvar", level=0.9)(d, p)[0])


# The paper's numerical example (its results folder): two steps, rewards of the first .1 and .2 with probability 1/2
# each; then {reward: probability}.
EXAMPLE = {
    "A": ({0.3: 0.9, 0.2: 0.1}, {0.4: 0.1, 0.5: 0.9}),
    "B": ({0.6: 0.9, 0.2: 0.1}, {0.4: 0.1, 0.2: 0.9}),
}
NESTED = [  # measure, its parameters, of A, of B; rewards, so that the risk is that of the cost -r
    ("expectation", {}, 0.54, 0.54),
    ("cvar", {"level": 0.99}, 0.538384, 0.537670),
    ("cvar", {"level": 0.9}, 0.522222, 0.513580),
    ("cvar", {"level": 0.5}, 0.38, 0.40),
    ("entropic", {"mu": 1.0}, 0.528330, 0.528330),
    ("entropic", {"mu": 5.0}, 0.485776, 0.485776),
    ("entropic", {"mu": 9.0}, 0.454651, 0.454651),
]


def certain(risk: Measured, rewards: list[float], chances: list[float]) -> float:
    """The certain reward that is worth as much as a random one: -Φ[-r]."""
    d, p = (torch.tensor([values], dtype=torch.float64) for values in (rewards, chances))
    return -risk(-d, p)[0].item()


@pytest.mark.parametrize("name, parameters, of_a, of_b", NESTED)
def test_the_papers_numerical_example(name, parameters, of_a, of_b):
    """R3: nested CVaR tells two policies apart whose totals have one distribution; the entropic measure does not."""
    risk = measured(name, **parameters)
    for policy, expected in (("A", of_a), ("B", of_b)):
        later = [certain(risk, [*leaves], [*leaves.values()]) for leaves in EXAMPLE[policy]]
        nested = certain(risk, [first + rest for first, rest in zip((0.1, 0.2), later, strict=True)], [0.5, 0.5])
        assert nested == pytest.approx(expected, abs=5e-7)


@pytest.mark.parametrize("level, expected", [(0.99, 0.538384), (0.9, 0.522222), (0.5, 0.39)])
def test_the_static_risk_of_the_numerical_example_is_one(level, expected):
    for leaves in EXAMPLE.values():
        totals = [
            (first + rest, 0.5 * p) for first, part in zip((0.1, 0.2), leaves, strict=True) for rest, p in part.items()
        ]
        assert certain(measured("cvar", level=level), *map(list, zip(*totals, strict=True))) == pytest.approx(
            expected, abs=5e-7
        )


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("level", [0.95, 0.4])
def test_released_distribution_by_torch_quantile_and_finite_differences(split, level):
    generator = torch.Generator().manual_seed(0)
    logits, ref_logits = torch.randn(2, 3, 12, generator=generator, dtype=torch.float64)
    targets = torch.tensor([0, 7, 11])

    def replaced(logps: Tensor) -> Tensor:
        halves = [logps[:, :6], logps[:, 6:]] if split else [logps]
        quantiles = [torch.quantile(half, 1 - level, dim=1, keepdim=True) for half in halves]
        return torch.cat([q * (half > q) for half, q in zip(halves, quantiles, strict=True)], dim=1)

    r, ref_r = replaced(logits.log_softmax(1)), replaced(ref_logits.log_softmax(1))
    picked, ref_picked, ratio = released_distribution(logits, ref_logits, targets, level, split)
    torch.testing.assert_close(picked, r[torch.arange(3), targets])
    torch.testing.assert_close(ref_picked, ref_r[torch.arange(3), targets])
    torch.testing.assert_close(ratio, (ref_logits.softmax(1) * (ref_r - r)).sum(1))

    def outputs(logits: Tensor) -> tuple[Tensor, Tensor]:
        picked, _, ratio = released_distribution(logits, ref_logits, targets, level, split)
        return picked, ratio

    assert torch.autograd.gradcheck(outputs, logits.requires_grad_())


@pytest.mark.parametrize(
    "name, parameters, message",
    [
        ("cvar", {"level": 0.0}, "level=0.0 must be above 0 and at most 1"),
        ("released_tail", {"level": 97.0}, "level=97.0 must be"),
        ("cvar", {"level": float("nan")}, "level=nan must be"),
        ("entropic", {"mu": 0.0}, "mu=0.0 must be above 0"),
        ("entropic", {"mu": float("inf")}, "mu=inf must be"),
        ("mean_semideviation", {"kappa": 1.5}, "at most 1"),
        ("entropic_scaled", {"mu": 5.0, "beta": 0.0}, "beta=0.0 must be above 0"),
    ],
)
def test_bad_parameters_are_refused(name, parameters, message):
    with pytest.raises(ValueError, match=message):
        MEASURES[name](**parameters)


def test_the_scaled_measure_has_the_objectives_temperature():
    """R14, scaled: its coefficient is μ β."""
    d, p = rows()
    scaled = EntropicScaled(5.0).at(0.1)
    torch.testing.assert_close(scaled(d, p.log())[0], Entropic(0.5)(d, p.log())[0])
    assert EntropicScaled(5.0, beta=0.3).at(0.1).beta == 0.3
    with pytest.raises(ValueError, match="no temperature"):
        EntropicScaled(5.0)(d, p.log())


@pytest.mark.parametrize("shapes", [((4,), (4,)), ((2, 4), (2, 5))])
def test_what_are_no_two_matrices_is_refused(shapes):
    with pytest.raises(ValueError, match="d and log p are"):
        CVaR()(*(torch.zeros(shape) for shape in shapes))
