"""Token statistics: the chunked computation against the oracle, quantiles against a sort."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from reproalign.common.config.model import LogprobsConfig
from reproalign.common.logprobs.head_states import HeadStates
from reproalign.common.logprobs.model import install_completion_logps
from reproalign.common.logprobs.plain import token_statistics
from reproalign.common.logprobs.quantiles import linear_quantile, upper_tail
from reproalign.common.logprobs.questions import StatisticsRequest
from reproalign.common.logprobs.statistics import STATISTICS, chunked_token_statistics
from reproalign.common.models.tiny import TINY_MODELS, tiny_model

TOKENS, HIDDEN, REF_HIDDEN, VOCAB = 7, 5, 4, 23
TRAINED = [name for name in STATISTICS if name != "ref_logps"]


def cvar(difference: Tensor, log_probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """A measure for these tests: the mean of the upper half, with its derivative."""
    probabilities = log_probabilities.exp()
    share = upper_tail(difference, probabilities, 0.5)[1]
    weights = probabilities * share / 0.5
    return (weights * difference).sum(1), weights


def heads(dtype: torch.dtype, **options: float) -> tuple[HeadStates, HeadStates, Tensor]:
    make = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=make, dtype=torch.float64).to(dtype)

    policy = HeadStates(random(TOKENS, HIDDEN), random(VOCAB, HIDDEN), random(VOCAB), **options)
    reference = HeadStates(random(TOKENS, REF_HIDDEN), random(VOCAB, REF_HIDDEN), random(VOCAB), **options)
    return policy, reference, torch.randint(0, VOCAB, (TOKENS,), generator=make)


def logits_of(states: HeadStates) -> Tensor:
    logits = states.scale * (states.hidden @ states.weight.T + states.bias)
    return logits if states.softcap is None else states.softcap * torch.tanh(logits / states.softcap)


def leaves(states: HeadStates) -> list[Tensor]:
    return [states.hidden.requires_grad_(), states.weight.requires_grad_(), states.bias.requires_grad_()]


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 100, None])
@pytest.mark.parametrize("options", [{}, {"softcap": 2.0}, {"scale": 0.5, "softcap": 3.0}])
def test_values_and_gradients_equal_the_oracles(chunk_size, options):
    """Ra-DPO R2: divergences of every token and their gradients, from full logits."""
    policy, reference, targets = heads(torch.float64, **options)
    wanted = leaves(policy)
    found = chunked_token_statistics(
        policy, reference, targets, statistics=STATISTICS, measure=cvar, chunk_size=chunk_size
    )
    expected = token_statistics(logits_of(policy), logits_of(reference), targets, cvar)
    upstream = torch.randn(len(STATISTICS), TOKENS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    totals = []
    for values in (found, expected):
        total = sum((weight * values[name]).sum() for weight, name in zip(upstream, STATISTICS, strict=True))
        totals.append(torch.autograd.grad(total, wanted))
    for name in STATISTICS:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-10)
    for ours, theirs in zip(*totals, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_are_right_by_finite_differences(name):
    policy, reference, targets = heads(torch.float64, softcap=3.0)

    def function(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        states = HeadStates(hidden, weight, bias, policy.softcap)
        return chunked_token_statistics(states, reference, targets, statistics=[name], measure=cvar, chunk_size=3)[name]

    assert torch.autograd.gradcheck(function, leaves(policy))


def test_every_subset_of_the_gradients():
    """What the loss does not use costs nothing and changes nothing."""
    policy, reference, targets = heads(torch.float64)
    wanted = leaves(policy)
    found = chunked_token_statistics(policy, reference, targets, statistics=STATISTICS, measure=cvar, chunk_size=4)
    expected = token_statistics(logits_of(policy), logits_of(reference), targets, cvar)
    for names in (["logps"], ["risk"], ["logps", "forward_kl"], ["entropy", "risk"]):
        ours = torch.autograd.grad(sum(found[name].square().sum() for name in names), wanted, retain_graph=True)
        theirs = torch.autograd.grad(sum(expected[name].square().sum() for name in names), wanted, retain_graph=True)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    assert not found["ref_logps"].requires_grad


def test_a_reference_may_come_as_logits():
    policy, reference, targets = heads(torch.float64)
    as_logits = HeadStates(logits=logits_of(reference))
    ours, theirs = (
        chunked_token_statistics(policy, states, targets, statistics=STATISTICS, measure=cvar, chunk_size=2)
        for states in (as_logits, reference)
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-5), (torch.bfloat16, 0.15)])
def test_error_bounds_of_lower_precision(dtype, bound):
    """float32: rounding. bfloat16: what rounding the inputs and logits to 8 bits costs; the statistics are float32."""
    exact = heads(torch.float64)
    rounded = heads(dtype)
    results = []
    for policy, reference, targets in (exact, rounded):
        values = chunked_token_statistics(policy, reference, targets, statistics=STATISTICS, measure=cvar)
        results.append(torch.stack([values[name].double() for name in STATISTICS]))
    assert (results[0] - results[1]).abs().max() < bound * results[0].abs().max()


def test_autocast_computes_in_its_dtype():
    policy, reference, targets = heads(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        values = chunked_token_statistics(policy, reference, targets)
    assert values["logps"].dtype == torch.float32


def test_misuse_is_refused():
    policy, reference, targets = heads(torch.float64)
    for message, arguments in {
        "unknown statistics": {"statistics": ["kl"]},
        "needs a measure": {"statistics": ["risk"]},
        "chunk_size must be at least 1": {"chunk_size": 0},
    }.items():
        with pytest.raises(ValueError, match=message):
            chunked_token_statistics(policy, reference, targets, **arguments)
    with pytest.raises(ValueError, match="the reference has"):
        chunked_token_statistics(policy, HeadStates(reference.hidden, reference.weight[:-1]), targets)
    with pytest.raises(ValueError, match="or its logits, are needed"):
        chunked_token_statistics(policy, HeadStates(), targets)


def batch() -> dict[str, Tensor]:
    ids = torch.randint(6, 500, (3, 12), generator=torch.Generator().manual_seed(3))
    attention = torch.ones_like(ids)
    attention[1, 9:] = 0
    completion = attention.clone()
    completion[:, :5] = 0
    completion[2] = 0
    return {"input_ids": ids, "attention_mask": attention, "completion_mask": completion}


def adapted(targets: list[str]) -> nn.Module:
    model = get_peft_model(tiny_model(dtype=torch.float64), LoraConfig(r=4, target_modules=targets))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    return model


def compare_with_oracle(policy: nn.Module, logits: Tensor, ref_logits: Tensor, reference: HeadStates) -> None:
    """``logits`` are the policy's own, of all positions; so are the reference's."""
    inputs = batch()
    scored = inputs["completion_mask"][:, 1:].bool()
    targets = inputs["input_ids"][:, 1:][scored]
    expected = token_statistics(logits[:, :-1][scored], ref_logits[:, :-1][scored], targets, cvar)
    found = policy(**inputs, statistics=StatisticsRequest(reference, STATISTICS, cvar))
    assert found.rows.tolist() == [0] * 7 + [1] * 4
    assert found.counts.tolist() == [7, 4, 0]
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    for name in STATISTICS:
        torch.testing.assert_close(found.per_token[name], expected[name], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found.sums[name][0], expected[name][:7].sum(), rtol=1e-10, atol=1e-10)
        assert found.sums[name][2] == 0
    total, expected_total = (
        sum((n + 1) * values[name].square().sum() for n, name in enumerate(TRAINED))
        for values in (found.per_token, expected)
    )
    ours, theirs = torch.autograd.grad(total, trained), torch.autograd.grad(expected_total, trained)
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", TINY_MODELS)
@pytest.mark.parametrize("way", ["chunked", "plain"])
@pytest.mark.parametrize("ref_way", ["chunked", "plain"])
def test_models_answer_for_statistics_against_another_model(kind, way, ref_way):
    """Another head and other weights: only the vocabulary is shared."""
    policy, reference = tiny_model(kind, dtype=torch.float64), tiny_model("gpt_neox", dtype=torch.float64, seed=5)
    inputs = batch()
    arguments = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    logits, ref_logits = policy(**arguments).logits, reference(**arguments).logits.detach()
    assert install_completion_logps(policy, LogprobsConfig(implementation=way, chunk_size=3)) == way
    assert install_completion_logps(reference, LogprobsConfig(implementation=ref_way)) == ref_way
    states = reference(**inputs, head_states=True)
    assert (states.weight is None) == (ref_way == "plain")
    compare_with_oracle(policy, logits, ref_logits, states)


@pytest.mark.parametrize(("targets", "way"), [(["q_proj"], "chunked"), (["q_proj", "lm_head"], "module")])
def test_the_reference_may_be_the_policy_without_its_adapters(targets, way):
    policy = adapted(targets)
    inputs = batch()
    arguments = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    logits = policy(**arguments).logits
    with policy.disable_adapter():
        ref_logits = policy(**arguments).logits.detach()
    assert install_completion_logps(policy, LogprobsConfig(chunk_size=3)) == way
    with policy.disable_adapter():
        states = policy(**inputs, head_states=True)
    compare_with_oracle(policy, logits, ref_logits, states)


def sorted_tail(values: Tensor, weights: Tensor, mass: float) -> Tensor:
    """Σ w share d by sorting."""
    ordered, order = values.sort(dim=1, descending=True)
    masses = weights.gather(1, order)
    before = masses.cumsum(1) - masses
    taken = (mass - before).clamp(min=0).minimum(masses)
    return (taken * ordered).sum(1)


@given(
    seed=st.integers(0, 1000),
    vocab=st.integers(1, 200),
    spread=st.sampled_from([0.0, 0.1, 3.0, 30.0]),
    mass=st.sampled_from([0.01, 0.3, 0.95, 0.99, 1.0]),
    decimals=st.sampled_from([0, 1, 12]),
)
def test_the_upper_tail_is_what_a_sort_gives(seed, vocab, spread, mass, decimals):
    """Also with many ties (rounded values) and with nearly all weight on one entry."""
    make = torch.Generator().manual_seed(seed)
    weights = (torch.randn(3, vocab, generator=make, dtype=torch.float64) * spread).softmax(1)
    values = torch.randn(3, vocab, generator=make, dtype=torch.float64).round(decimals=decimals)
    quantile, share = upper_tail(values, weights, mass)
    expected = sorted_tail(values, weights, mass)
    torch.testing.assert_close((weights * share * values).sum(1), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close((weights * share).sum(1), torch.full((3,), mass, dtype=torch.float64))
    assert ((share >= 0) & (share <= 1)).all()
    assert (share[values > quantile[:, None]] == 1).all()
    assert (share[values < quantile[:, None]] == 0).all()
    # Where an entry ends at the mass, that value and the next are both quantiles.
    assert ((weights * (values > quantile[:, None])).sum(1) <= mass + 1e-12).all()
    assert ((weights * (values >= quantile[:, None])).sum(1) >= mass - 1e-12).all()


def test_the_upper_tail_needs_neither_blocks_nor_small_rows():
    values = torch.randn(3, 300_000, generator=torch.Generator().manual_seed(0))
    weights = torch.full_like(values, 1 / 300_000)
    quantile, share = upper_tail(values, weights, 0.25)
    assert quantile.tolist() == pytest.approx([0.6745] * 3, abs=0.01)
    assert share.mean(1).tolist() == pytest.approx([0.25] * 3, abs=1e-4)


@given(seed=st.integers(0, 100), vocab=st.integers(1, 60), level=st.floats(0, 1), decimals=st.sampled_from([0, 12]))
def test_linear_quantiles_are_torchs(seed, vocab, level, decimals):
    values = torch.randn(4, vocab, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values = values.round(decimals=decimals)
    torch.testing.assert_close(linear_quantile(values, level), torch.quantile(values, level, dim=1), rtol=0, atol=1e-14)


def test_linear_quantiles_have_no_limit_of_elements_and_carry_gradients():
    values = torch.randn(2, 2**24 // 2 + 8).requires_grad_()
    linear_quantile(values, 0.5).sum().backward()
    assert values.grad.sum() == pytest.approx(2.0)
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(values.detach().flatten(), 0.5)


@pytest.mark.parametrize("level", [-0.1, 1.1])
def test_levels_and_masses_outside_their_range_are_refused(level):
    with pytest.raises(ValueError, match="level must be in"):
        linear_quantile(torch.zeros(1, 2), level)
    with pytest.raises(ValueError, match="mass must be in"):
        upper_tail(torch.zeros(1, 2), torch.full((1, 2), 0.5), level)
