"""The losses against their defining properties, brute force, their limits, and TRL's DPO and KTO."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from reproalign.common.logprobs.plain import differentiable
from reproalign.common.models.tiny import tiny_model
from reproalign.common.models.tiny_tokenizers import tiny_tokenizer
from reproalign.common.testing.oracle import token_logps
from reproalign.common.text.collate import IGNORED
from reproalign.common.training.examples import kl_estimate, tokenwise_kl_estimate
from reproalign.common.training.objective import Examples, Pairs, Responses
from reproalign.radpo.objectives.dpo import CDPO, DPO
from reproalign.radpo.objectives.kto import KTO, KTOZero
from reproalign.radpo.objectives.ppo import PPO, future_rewards, gae, terminal_rewards
from reproalign.radpo.objectives.ra_dpo import RaDPO
from reproalign.radpo.objectives.sft import SFT
from reproalign.radpo.objectives.slic import SLiC
from reproalign.radpo.objectives.tdpo import TDPO
from reproalign.radpo.risk import CVaR, CVaRComplement, Entropic, Expectation, RiskMeasure

BETA = 0.3
betas = st.floats(0.01, 2)
numbers = st.floats(-30, 30)
seeds = st.integers(0, 10_000)


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def draws(count: int, *shape: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(count)]


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def pairs(chosen: Tensor, rejected: Tensor, *terms: Tensor) -> Pairs:
    """Log-ratios of both sides, and their sequential KL divergences or risk ratios."""
    sides = zip((chosen, rejected), terms or ({}, {}), strict=True)
    return Pairs(*(Responses(u, statistics={"forward_kl": t, "risk": t} if terms else {}) for u, t in sides))


def examples(log_ratios: Tensor, desirable: Tensor, **kl: Tensor) -> Examples:
    return Examples(log_ratios, torch.zeros_like(log_ratios), desirable, **kl)


DESIRABLE = torch.tensor([True, False, False, True, True])

DIFFERENTIABLE: dict[str, tuple[Any, int]] = {
    "dpo": (lambda c, r: DPO(BETA)(pairs(c, r)), 2),
    "cdpo": (lambda c, r: CDPO(BETA, 0.2)(pairs(c, r)), 2),
    "slic": (lambda c, r: SLiC(1.0, 0.1)(pairs(c, r)), 2),
    "first form": (lambda *values: TDPO(BETA)(pairs(*values)), 4),
    "second form": (lambda c, r, t: RaDPO(BETA, 0.5)(pairs(c, r, tensor(1, 2, 3, 4, 5), t)), 3),
    "kto": (lambda u: KTO(BETA, 1.3, 0.7)(examples(u, DESIRABLE, kl=tensor(0.4)[0])), 1),
    "kto, tokenwise": (
        lambda u: KTO(BETA, tokenwise_kl=True)(examples(u, DESIRABLE, tokenwise_kl=tensor(0, 1, 2, 0, 3))),
        1,
    ),
    "kto-zero": (lambda u: KTOZero(BETA, 2.0, 0.5)(examples(u, DESIRABLE)), 1),
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_by_finite_differences(name):
    function, count = DIFFERENTIABLE[name]
    assert torch.autograd.gradcheck(lambda *values: function(*values).losses, draws(count, 5))


@given(chosen=numbers, rejected=numbers, beta=betas, epsilon=st.floats(0, 0.49))
def test_dpo_and_its_smoothing_are_cross_entropies(chosen, rejected, beta, epsilon):
    """R8, in closed form."""
    p = logistic(beta * (chosen - rejected))
    assume(1e-12 < p < 1 - 1e-12)
    result = CDPO(beta, epsilon)(pairs(tensor(chosen), tensor(rejected)))
    expected = -(1 - epsilon) * math.log(p) - epsilon * math.log(1 - p)
    assert result.losses.item() == pytest.approx(expected, rel=1e-3, abs=1e-9)
    plain = DPO(beta)(pairs(tensor(chosen), tensor(rejected)))
    assert plain.losses.item() == pytest.approx(-math.log(p), rel=1e-3, abs=1e-9)
    assert plain.chosen_rewards.item() == pytest.approx(beta * chosen)
    assert plain.rejected_rewards.item() == pytest.approx(beta * rejected)


@given(seed=seeds, beta=betas)
def test_second_form_at_alpha_zero_and_equal_drifts_are_dpo(seed, beta):
    """R4, R5, R6: the terms cancel where R_l = R_w, and at α = 0."""
    chosen, rejected, chosen_term, rejected_term = draws(4, 3, seed=seed)
    plain = DPO(beta)(pairs(chosen, rejected)).losses
    at_zero = TDPO(beta, 0.0)(pairs(chosen, rejected, chosen_term, rejected_term))
    torch.testing.assert_close(at_zero.losses, plain)
    torch.testing.assert_close(TDPO(beta)(pairs(chosen, rejected, chosen_term, chosen_term)).losses, plain)
    torch.testing.assert_close(at_zero.chosen_rewards, (beta * (chosen + chosen_term)).detach())


def test_forms_agree_at_alpha_one_but_for_the_stopped_gradient():
    """R4 and R5: one value of R6, but no gradient through R_w in the second form."""
    values = draws(4, 3)
    first, second = (RaDPO(BETA, alpha)(pairs(*values)) for alpha in (None, 1.0))
    torch.testing.assert_close(first.losses, second.losses)
    firsts = torch.autograd.grad(first.losses.sum(), values)
    seconds = torch.autograd.grad(second.losses.sum(), values, allow_unused=True)
    assert seconds[2] is None
    for number in (0, 1, 3):
        torch.testing.assert_close(firsts[number], seconds[number])
    # Lower drift of the rejected and higher drift of the chosen response lower the first form: signs of -(T_l - T_w).
    assert (firsts[3] > 0).all()
    assert (firsts[2] < 0).all()


@pytest.mark.parametrize("alpha", [None, 0.5])
def test_risk_neutral_ra_dpo_is_tdpo(alpha):
    """R2 is the limit of R3: from logits, two responses of three tokens to each of two prompts, with gradients."""
    logits, ref_logits = (side.reshape(12, 9) for side in draws(2, 2, 2, 3, 9))
    targets = torch.arange(12) % 9

    def losses(measure: RiskMeasure) -> tuple[Tensor, Tensor]:
        logps, ref_logps = logits.log_softmax(1), ref_logits.detach().log_softmax(1)
        log_ratios = (logps - ref_logps).gather(1, targets[:, None]).reshape(2, 2, 3).sum(2)
        terms = differentiable(measure, ref_logps - logps, ref_logps).reshape(2, 2, 3).sum(2)
        result = RaDPO(BETA, alpha)(pairs(*log_ratios, *terms)).losses
        return result, torch.autograd.grad(result.sum(), logits)[0]

    tdpo, gradient = losses(Expectation())
    for measure in (CVaR(1.0), CVaR(1 - 1e-9), CVaRComplement(1e-9), Entropic(1e-7)):
        limit, its_gradient = losses(measure)
        torch.testing.assert_close(limit, tdpo, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(its_gradient, gradient, rtol=1e-5, atol=1e-5)
    averse, _ = losses(CVaR(0.5))
    assert (averse - tdpo).abs().min() > 1e-4


def test_slic_by_hand_and_per_token():
    """R9, of responses and of tokens."""
    # 1 - (-5) + (-5.5) = 0.5, then - 0.1 · (-5); the second hinge is inactive.
    result = SLiC(1.0, 0.1)(pairs(tensor(-5.0, -2.0), tensor(-5.5, -9.0)))
    torch.testing.assert_close(result.losses, tensor(0.5 + 0.5, 0.2))
    chosen, rejected = draws(2, 4, 6)
    tokens = SLiC(1.0, 0.1)(pairs(chosen, rejected))
    torch.testing.assert_close(tokens.losses, SLiC(1.0, 0.1)(pairs(chosen.sum(1), rejected.sum(1))).losses)
    assert tokens.chosen_rewards.shape == (4, 6)


@given(u=numbers, kl=st.floats(0, 20), beta=betas, desirable=st.booleans(), weight=st.floats(0, 3))
def test_kto_is_the_weighted_value_of_gains_and_losses(u, kl, beta, desirable, weight):
    """R10, in closed form."""
    weights = (weight, 99.0) if desirable else (99.0, weight)
    result = KTO(beta, *weights)(examples(tensor(u), torch.tensor([desirable]), kl=torch.tensor(kl).double()))
    expected = weight * (1 - logistic(beta * ((u - kl) if desirable else (kl - u))))
    assert result.losses.item() == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert result.rewards.item() == u


@pytest.mark.parametrize("desirable", [True, False])
def test_kto_with_one_class_alone_and_kto_zero(desirable):
    (u,) = draws(1, 4)
    labels = torch.full((4,), desirable)
    zero = KTOZero(BETA)(examples(u, labels)).losses
    torch.testing.assert_close(zero, torch.sigmoid(-BETA * u if desirable else BETA * u))
    torch.testing.assert_close(zero, KTO(BETA)(examples(u, labels, kl=torch.zeros(()).double())).losses)


def test_kl_estimates_are_clamped_and_carry_no_gradient():
    (per_token,) = draws(1, 3, 4)
    assert kl_estimate(tensor(1.0, -0.5, 2.5)).item() == pytest.approx(1.0)
    assert kl_estimate(tensor(1.0, -4.0)).item() == 0.0
    expected = [max(0.0, *row) for row in per_token.tolist()]
    assert tokenwise_kl_estimate(per_token).tolist() == expected
    assert tokenwise_kl_estimate(-per_token.abs()).tolist() == [0.0] * 3
    assert not kl_estimate(per_token.sum(1)).requires_grad
    assert not tokenwise_kl_estimate(per_token).requires_grad


def test_sft_is_a_sum():
    """R7: a sum over tokens, no mean."""
    assert SFT()(Responses(tensor(-3.0, -0.5))).losses.tolist() == [3.0, 0.5]


# PPO: a prompt of one token, completions of 3 and 2 tokens, padding on the right.
MASK = torch.tensor([[0, 1, 1, 1, 0], [0, 1, 1, 0, 0]], dtype=torch.bool)
LABELS = torch.tensor([True, False])


def test_terminal_rewards():
    assert terminal_rewards(LABELS, MASK).tolist() == [[0, 0, 0, 1, 0], [0, 0, -1, 0, 0]]


def test_advantages_and_targets_by_brute_force():
    """R11: GAE and the critic's targets, by sums over later tokens."""
    (values,) = draws(1, 2, 5)
    gamma, lam = 0.9, 0.8
    rewards = terminal_rewards(LABELS, MASK).double()
    raw = torch.zeros(2, 5, dtype=torch.float64)
    targets = torch.zeros(2, 5, dtype=torch.float64)
    for row, (start, end) in enumerate([(1, 4), (1, 3)]):
        v = [*values[row, start:end].tolist(), 0.0]
        r = rewards[row, start:end].tolist()
        deltas = [r[t] + gamma * v[t + 1] - v[t] for t in range(end - start)]
        for t in range(end - start):
            raw[row, start + t] = sum((gamma * lam) ** k * delta for k, delta in enumerate(deltas[t:]))
            targets[row, start + t] = sum(gamma**k * later for k, later in enumerate(r[t + 1 :]))
    kept = raw[MASK]
    expected = (raw - kept.mean()) / (kept.var(correction=0) + 1e-8).sqrt() * MASK
    torch.testing.assert_close(gae(values, rewards, MASK, gamma, lam), expected)
    torch.testing.assert_close(future_rewards(rewards, MASK, gamma), targets)
    # At λ = 1 and γ = 1 the raw advantage is the reward to come minus the value.
    normalised = gae(values, rewards, MASK, 1.0, 1.0)[MASK]
    simple = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0]) - values.detach()[MASK]
    torch.testing.assert_close(normalised, (simple - simple.mean()) / (simple.var(correction=0) + 1e-8).sqrt())


def offline(logps: Tensor, old: Tensor, values: Tensor, advantages: Tensor | None = None) -> Examples:
    sums = [(side * MASK).sum(1) for side in (logps, old)]
    return Examples(*sums, LABELS, MASK, logps, old, values, advantages)


def test_what_is_off_the_mask_does_not_matter():
    logps, old, values = (value.detach() for value in draws(3, 2, 5))
    noise = torch.where(MASK, 0.0, 7.0)
    plain, noisy = PPO()(offline(logps, old, values)), PPO()(offline(logps + noise, old - noise, values + noise))
    torch.testing.assert_close(vars(plain), vars(noisy))


def test_ppo_terms_are_means_over_tokens():
    """R11, term by term."""
    logps, old, values, advantages = draws(4, 2, 5)
    objective = PPO(cliprange=0.5, critic_coef=0.01, kl_coef=0.1)
    result = objective(offline(logps, old, values, advantages))
    targets = future_rewards(terminal_rewards(LABELS, MASK).double(), MASK, objective.gamma)
    policy = critic = kl = clipped = 0.0
    count = int(MASK.sum())
    for row, position in MASK.nonzero().tolist():
        log_ratio = (logps - old)[row, position].item()
        ratio, advantage = math.exp(log_ratio), advantages[row, position].item()
        bounded = min(max(ratio, 0.5), 2.0)
        policy += max(-advantage * ratio, -advantage * bounded) / count
        clipped += (-advantage * bounded > -advantage * ratio) / count
        critic += 0.5 * (values - targets)[row, position].item() ** 2 / count
        kl -= log_ratio / count
    found = {name.removeprefix("ppo/"): value.mean().item() for name, value in result.metrics.items()}
    expected = {"policy": policy, "critic": critic, "kl": kl, "clip_fraction": clipped}
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert result.losses.mean().item() == pytest.approx(policy + 0.01 * critic + 0.1 * kl)
    torch.testing.assert_close(result.metrics["ppo/sequence_ratio"], result.rewards.exp())
    assert torch.autograd.gradcheck(
        lambda logps, values: objective(offline(logps, old, values, advantages)).losses, (logps, values)
    )


def test_first_ppo_step_is_a_policy_gradient():
    """At π = π_old the ratio is 1 inside the clip range, and the gradient is that of -A log π."""
    logps, advantages = draws(2, 2, 5)
    zeros = torch.zeros(2, 5, dtype=torch.float64)
    result = PPO(kl_coef=1e-12)(offline(logps, logps.detach(), zeros, advantages))
    (gradient,) = torch.autograd.grad(result.losses.mean(), logps)
    torch.testing.assert_close(gradient, (-advantages * MASK / MASK.sum()).detach())


def test_the_advantages_of_a_batch_are_those_of_its_first_step():
    logps, old, values, later = (value.detach() for value in draws(4, 2, 5))
    kept = PPO(ppo_epochs=2).advantages(offline(logps, old, values))
    first, again = PPO()(offline(logps, old, values)), PPO()(offline(logps, old, later, kept))
    torch.testing.assert_close(first.metrics["ppo/policy"], again.metrics["ppo/policy"])


def test_extreme_log_ratios_neither_overflow_nor_vanish():
    far = tensor(-1e4, 1e4).requires_grad_()
    losses = DPO(1.0)(pairs(far, torch.zeros_like(far))).losses
    assert losses.tolist() == [1e4, 0.0]
    kto = KTO(1.0)(examples(tensor(40.0, -1e4), torch.tensor([True, True]), kl=torch.tensor(0.0))).losses
    assert kto[0].item() == pytest.approx(math.exp(-40.0))
    assert kto[1].item() == 1.0


TEXTS = [
    ("two plus two<|im_end|>", " is four", " is a dog"),
    ("name a colour<|im_end|>", " blue", " the lazy fox and more"),
]


def log_ratios(policy: torch.nn.Module, reference: torch.nn.Module, batch: dict[str, Tensor], prefix: str) -> Tensor:
    """Sums over the completion tokens of TRL's own batch."""
    ids, attended = batch[f"{prefix}input_ids"], batch[f"{prefix}attention_mask"]
    labels = ids.masked_fill(batch[f"{prefix}completion_mask"] == 0, IGNORED)
    sums = [
        token_logps(model(input_ids=ids, attention_mask=attended).logits, labels).sum(1)
        for model in (policy, reference)
    ]
    return sums[0] - sums[1].detach()


def settings(folder: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder), "beta": BETA, "use_cpu": True, "bf16": False, "report_to": [],
        "gradient_checkpointing": False, "disable_dropout": True, "max_length": None,
    }  # fmt: skip


def assert_same(ours: Tensor, theirs: Tensor, model: torch.nn.Module) -> None:
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    parameters = list(model.parameters())
    pairs = zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters), strict=True)
    for mine, its in pairs:
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-6)


def test_dpo_equals_trls(tmp_path):
    """R8: loss and gradients of whole models are TRL's."""
    rows = [{"prompt": prompt, "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in TEXTS]
    trl = DPOTrainer(
        model=tiny_model(seed=1).train(),
        ref_model=tiny_model(seed=2),
        args=DPOConfig(per_device_train_batch_size=2, **settings(tmp_path)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
    )
    batch = next(iter(trl.get_train_dataloader()))
    theirs = trl.compute_loss(trl.model, dict(batch))
    chosen, rejected = log_ratios(trl.model, trl.ref_model, batch, "").chunk(2)
    assert_same(DPO(BETA)(pairs(chosen, rejected)).losses.mean(), theirs, trl.model)


@pytest.mark.parametrize("policy_seed, clamped", [(1, True), (5, False)])
def test_kto_equals_trls(tmp_path, policy_seed, clamped):
    """R10: loss and gradients of whole models are TRL's, the estimate of K included."""
    rows = [{"prompt": text[0], "completion": text[1 + side], "label": side == 0} for text in TEXTS for side in (0, 1)]
    trl = KTOTrainer(
        model=tiny_model(seed=policy_seed).train(),
        ref_model=tiny_model(seed=2),
        args=KTOConfig(
            per_device_train_batch_size=4, desirable_weight=1.3, undesirable_weight=0.7, **settings(tmp_path)
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
    )
    batch = next(iter(trl.get_train_dataloader()))
    theirs = trl.compute_loss(trl.model, dict(batch))
    kl = kl_estimate(log_ratios(trl.model, trl.ref_model, batch, "KL_"))
    assert (kl.item() == 0) == clamped
    ratios = log_ratios(trl.model, trl.ref_model, batch, "")
    labels = torch.as_tensor(batch["label"], dtype=torch.bool)
    assert_same(KTO(BETA, 1.3, 0.7)(examples(ratios, labels, kl=kl)).losses.mean(), theirs, trl.model)
