"""From golden inputs to this package's functions and back: format translation only, no logic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from reproalign.common.logprobs.plain import IGNORE, differentiable, token_logps
from reproalign.radpo import loss, risk

Case = dict[str, Any]
ADAPTERS: dict[str, Callable[[Case, Case], Any]] = {}


def adapter(function: Callable[[Case, Case], Any]) -> Callable[[Case, Case], Any]:
    ADAPTERS[function.__name__.rstrip("_")] = function  # an underscore where the name is taken by an import
    return function


def vector(values: Any, *, grad: bool = False) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


def matrix(values: Any) -> Tensor:
    """Log-probs per token; an empty list stands for no rows."""
    return vector(values, grad=True) if values else torch.zeros(0, 1, dtype=torch.float64, requires_grad=True)


def gradients(losses: Tensor, *inputs: Tensor) -> list[Tensor | None]:
    """Of the sum of the losses; None for an input that has no rows or no part in it."""
    return [
        gradient if len(value) else None
        for value, gradient in zip(inputs, torch.autograd.grad(losses.sum(), inputs, allow_unused=True), strict=True)
    ]


@adapter
def token_logps_(inputs: Case, params: Case) -> Any:
    logits = vector(inputs["logits"], grad=True)
    logps = token_logps(logits, torch.tensor(inputs["labels"]))
    (gradient,) = torch.autograd.grad((logps * vector(inputs["upstream"])).sum(), logits)
    return {"logps": logps, "grad_logits": gradient}


Terms = tuple[Tensor, Tensor, Tensor]  # log-probs of the targets under policy and reference, and the token-level term


def statistics(inputs: Case, terms: Callable[[Tensor, Tensor, Tensor], Terms], term: str, upstream: str) -> Any:
    """Sums over the scored positions of a batch, and the gradient of the weighted sum of them."""
    logits, ref_logits = vector(inputs["logits"], grad=True), vector(inputs["ref_logits"])
    labels = torch.tensor(inputs["labels"])[:, 1:]
    scored = labels != IGNORE
    at = [part[:, :-1][scored] for part in (logits, ref_logits)]
    logps, ref_logps = (part.log_softmax(1) for part in at)

    def row_sums(per_token: Tensor) -> Tensor:
        return torch.zeros(scored.shape, dtype=torch.float64).masked_scatter(scored, per_token).sum(1)

    picked, ref_picked, values = terms(*at, labels[scored])
    sums = {"logps_margin": row_sums(picked - ref_picked), term: row_sums(values), "logps": row_sums(picked)}
    weights = [vector(inputs[f"upstream_{name}"]) for name in ("margin", upstream, "logp")]
    total = sum((weight * value).sum() for weight, value in zip(weights, sums.values(), strict=True))
    (gradient,) = torch.autograd.grad(total, logits)
    divergence = row_sums(risk.expectation(ref_logps - logps, ref_logps.exp())[0])
    return {"position_kl": divergence, **sums, "grad_logits": gradient}


def measured(measure: risk.Measure) -> Callable[[Tensor, Tensor, Tensor], Terms]:
    def terms(logits: Tensor, ref_logits: Tensor, targets: Tensor) -> Terms:
        logps, ref_logps = logits.log_softmax(1), ref_logits.log_softmax(1)
        picked, ref_picked = (part.gather(1, targets[:, None]).squeeze(1) for part in (logps, ref_logps))
        return picked, ref_picked, differentiable(measure, ref_logps - logps, ref_logps.exp())

    return terms


@adapter
def tdpo_statistics(inputs: Case, params: Case) -> Any:
    return statistics(inputs, measured(risk.measure("expectation")), "position_kl", "kl")


@adapter
def ra_dpo_statistics(inputs: Case, params: Case) -> Any:
    level, split = params["confidence_level"], params["is_split_risk_ratio"]
    terms = measured(risk.measure("released_tail", level=level, split=split))
    if params["is_cal_risk_distribution_logps"]:

        def terms(logits: Tensor, ref_logits: Tensor, targets: Tensor) -> Terms:
            return risk.released_distribution(logits, ref_logits, targets, level, split)

    return statistics(inputs, terms, "risk_ratio", "risk")


@adapter
def tdpo_loss(inputs: Case, params: Case) -> Any:
    names = ("chosen_margin", "rejected_margin", "chosen_term", "rejected_term")
    values = [vector(inputs[name], grad=True) for name in names]
    alpha = params["alpha"] if params["second_form"] else None
    result = loss.token_level_loss(*values, params["beta"], alpha)
    return {**result._asdict(), "grads": gradients(result.losses, *values)}


ADAPTERS["ra_dpo_loss"] = tdpo_loss


def pair_inputs(inputs: Case) -> list[Tensor]:
    names = ("policy_chosen_logps", "policy_rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
    return [matrix(inputs[name]) for name in names]


def paired(inputs: Case, function: Callable[[Tensor, Tensor], loss.PairLoss]) -> Any:
    chosen, rejected, ref_chosen, ref_rejected = pair_inputs(inputs)
    result = function((chosen - ref_chosen).sum(1), (rejected - ref_rejected).sum(1))
    grad_chosen, grad_rejected = gradients(result.losses, chosen, rejected)
    return {**result._asdict(), "grad_chosen": grad_chosen, "grad_rejected": grad_rejected}


@adapter
def dpo_loss(inputs: Case, params: Case) -> Any:
    return paired(inputs, lambda chosen, rejected: loss.dpo_loss(chosen, rejected, params["beta"]))


@adapter
def cdpo_loss(inputs: Case, params: Case) -> Any:
    return paired(inputs, lambda chosen, rejected: loss.cdpo_loss(chosen, rejected, params["beta"], params["epsilon"]))


@adapter
def slic_loss(inputs: Case, params: Case) -> Any:
    chosen, rejected = pair_inputs(inputs)[:2]
    result = loss.slic_loss(chosen, rejected, params["beta"], params["lambda_coef"])
    grad_chosen, grad_rejected = gradients(result.losses, chosen, rejected)
    return {**result._asdict(), "grad_chosen": grad_chosen, "grad_rejected": grad_rejected}


def unpaired(inputs: Case, function: Callable[[Tensor, Tensor], loss.ExampleLoss]) -> Any:
    chosen, rejected, ref_chosen, ref_rejected = pair_inputs(inputs)
    log_ratios = torch.cat([(chosen - ref_chosen).sum(1), (rejected - ref_rejected).sum(1)])
    desirable = torch.arange(len(log_ratios)) < len(chosen)
    result = function(log_ratios, desirable)
    grad_chosen, grad_rejected = gradients(result.losses, chosen, rejected)
    return {
        "losses": result.losses,
        "chosen_rewards": result.rewards[desirable],
        "rejected_rewards": result.rewards[~desirable],
        "grad_chosen": grad_chosen,
        "grad_rejected": grad_rejected,
    }


def weights(params: Case) -> tuple[float, float, float]:
    return params["beta"], params["desirable_weight"], params["undesirable_weight"]


@adapter
def kto_loss(inputs: Case, params: Case) -> Any:
    differences = torch.cat(
        [
            matrix(inputs[f"policy_{side}_KL_logps"]) - matrix(inputs[f"ref_{side}_KL_logps"])
            for side in ("chosen", "rejected")
        ]
    )
    kl = loss.tokenwise_kl(differences) if params["tokenwise_KL"] else loss.batch_kl(differences.sum(1))
    result = unpaired(inputs, lambda ratios, desirable: loss.kto_loss(ratios, desirable, kl, *weights(params)))
    return {**result, "KL": kl}


@adapter
def kto_zero_loss(inputs: Case, params: Case) -> Any:
    return unpaired(inputs, lambda ratios, desirable: loss.kto_zero_loss(ratios, desirable, *weights(params)))
