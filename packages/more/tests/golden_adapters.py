"""From golden inputs to this package's functions and back: format translation only, no logic."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from reproalign.common.evaluation.calibration import probability_calibration
from reproalign.common.judging.endpoint import EndpointError
from reproalign.common.reward import reading
from reproalign.common.reward import released as reward_released
from reproalign.common.text.collate import pad_rows
from reproalign.more import balance, groups, items, loss, min_norm, released, released_judge
from reproalign.more.config import WeightsConfig
from reproalign.more.metrics import BINS, domain_metrics

Case = dict[str, Any]
ADAPTERS: dict[str, Callable[[Case, Case], Any]] = {}


def adapter(function: Callable[[Case, Case], Any]) -> Callable[[Case, Case], Any]:
    ADAPTERS[function.__name__.rstrip("_")] = function  # an underscore where the name is taken by an import
    return function


def tensor(values: Any, *, grad: bool = False) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


def with_gradient(total: Tensor, logits: Tensor) -> dict[str, Tensor]:
    (gradient,) = torch.autograd.grad(total, logits)
    return {"loss": total, "grad_logits": gradient}


@adapter
def ranking_loss(inputs: Case, params: Case) -> Any:
    logits = tensor(inputs["logits"], grad=True)
    return with_gradient(loss.ranking_loss(logits, tensor(inputs["scores"])), logits)


@adapter
def more_ranking_loss(inputs: Case, params: Case) -> Any:
    logits, weights = tensor(inputs["logits"], grad=True), tensor(inputs["weights"])
    domain = torch.tensor(inputs["task_mask"])
    total = released.rows_loss(logits, tensor(inputs["scores"]), weights, domain, grouped=params["resampling"])
    return with_gradient(total, logits)


@adapter
def gradient_normalizer(inputs: Case, params: Case) -> Any:
    grads, losses = tensor(inputs["grads"]), tensor(inputs["losses"])
    return {"grads": balance.normalize_gradients(grads, losses, params["type"], released.RELEASED.least_loss)}


@adapter
def min_norm_frank_wolfe(inputs: Case, params: Case) -> Any:
    vectors = np.array(inputs["vectors"])
    gram = np.inner(vectors, vectors)
    weights, norm = min_norm.frank_wolfe(gram, max_steps=params["max_iter"], stop=params["stop"])
    return {"weights": weights, "norm_sq": np.inner(weights, np.inner(gram, weights)), "reported": norm}


def balancer(inputs: Case, params: Case) -> balance.Balancer:
    """Rule, momentum and solver of a case; without momentum given, what the rule does not read."""
    options = {"normalize": params["normalize"], "alpha": float(params["alpha"])} if "alpha" in params else {}
    rule = "min-norm" if params.get("reweight", True) else "uniform"
    start = tensor(inputs.get("initial_momentum", [[]] * params["task_num"]))
    names = [str(task) for task in range(params["task_num"])]
    return balance.Balancer(WeightsConfig(rule=rule, **options), names, start, released.RELEASED)


def weighted_rows(
    made: balance.Balancer, step: Case, head: Tensor, *, grouped: bool
) -> tuple[released.RowWeights, Tensor, Tensor, Tensor]:
    """The weights of a batch's rows; also its rewards, scores and the domains of the rows."""
    features, scores = tensor(step["embeddings"]), tensor(step["scores"])
    rows, responses, _ = features.shape
    tasks = step.get("task_mask") or [row * len(made.domains) // rows for row in range(rows)]
    rewards, domain = linear(features, head), torch.tensor(tasks)
    slot = torch.arange(rows * responses)
    found = released.row_weights(made, features.flatten(0, 1), rewards, scores, slot, domain, grouped=grouped)
    return found, rewards, scores, domain


@adapter
def compute_lambda(inputs: Case, params: Case) -> Any:
    made, steps = balancer(inputs, params), []
    for step in inputs["steps"]:
        found, *_ = weighted_rows(made, step, tensor(step["head_weight"]), grouped=True)
        steps.append({"lambda": found.weights, "momentum": made.momentum})
    return {"steps": steps}


@adapter
def compute_lambda_noresampling(inputs: Case, params: Case) -> Any:
    made, steps = balancer(inputs, params), []
    for step in inputs["steps"]:
        found, *_ = weighted_rows(made, step, tensor(step["head_weight"]), grouped=False)
        of_task = dict(zip(map(str, step["task_mask"]), found.weights, strict=True))
        steps.append({"lambda_by_task": of_task, "row_weights": found.weights, "momentum": made.momentum})
    return {"steps": steps}


def row_loss(inputs: Case, params: Case) -> Case:
    """Weights as they meet the rows, the loss, its gradients, and the momentum after the step."""
    made, head, grouped = balancer(inputs, params), tensor(inputs["head_weight"], grad=True), params["resampling"]
    found, rewards, scores, domain = weighted_rows(made, inputs, head, grouped=grouped)
    rewards.retain_grad()
    loss_of_rows = released.rows_loss(rewards, scores, found.weights, domain, grouped=grouped)
    loss_of_rows.backward()
    results = {"loss": loss_of_rows, "grad_logits": rewards.grad, "grad_head_weight": head.grad}
    return {"weights": found.weights, "momentum": made.momentum, **results}


@adapter
def more_loss_several_groups(inputs: Case, params: Case) -> Any:
    return row_loss(inputs, params)


@adapter
def weights_without_reweight(inputs: Case, params: Case) -> Any:
    return {name: value for name, value in row_loss(inputs, params).items() if name != "momentum"}


@adapter
def pooling_(inputs: Case, params: Case) -> Any:
    pooled = reward_released.released_pool(
        tensor(inputs["hidden_states"]),
        torch.tensor(inputs["input_ids"]),
        torch.tensor(inputs["attention_mask"]),
        params["pooling"],
        pad_token_id=params["pad"],
        padding_side=params["padding_side"],
    )
    return {"pooled": pooled, "reward": linear(pooled, tensor(inputs["head_weight"]))}


@adapter
def calibration_error(inputs: Case, params: Case) -> Any:
    errors = probability_calibration(
        inputs["y_prob"], inputs["y_true"], n_bins=params["n_bins"], binning=params["strategy"]
    )
    return {"expected": errors.ece, "average": errors.ace, "maximum": errors.mce}


@adapter
def compute_metrics(inputs: Case, params: Case) -> Any:
    metrics = domain_metrics(inputs["logits"], inputs["scores"], ties="half")
    errors = {
        f"calibration_{name.upper()}_bin{n_bins}": metrics[f"{name}_{n_bins}"]
        for name in ("ece", "ace", "mce")
        for n_bins in BINS
    }
    return {"Preference total Acc": metrics["accuracy"], "Test Data Size": metrics["items"], **errors}


@adapter
def prepare_data_item(inputs: Case, params: Case) -> Any:
    item = inputs["item"]
    scores = [float(score) for score in item["score"]]
    prepared = items.prepare_released(item["text"], scores)
    if prepared is None:
        return {"text": None, "score": None}
    texts, kept = prepared
    absent = max(params["max_response_num"] - len(texts), 0) if params["padding"] else 0  # no row of tokens here
    return {"text": [*texts, *[" "] * absent], "score": [*kept, *[-1.0] * absent]}


@adapter
def resampling(inputs: Case, params: Case) -> Any:
    generator = random.Random(params["python_random_seed"])
    try:
        picks = groups.resample_released(inputs["sizes"], params["resampling_size"], generator)
    except groups.ReleasedResamplingError as error:
        return {"ids": None, "error": error.original}
    return {"ids": [[f"{domain}-{row}" for domain, row in task] for task in picks], "error": None}


@adapter
def reward_tokenize(inputs: Case, params: Case) -> Any:
    special = reward_released.SpecialIds(params["bos"], params["eos"], params["pad"])
    length, side = params["max_length"], params["padding_side"]
    rows = [
        reading.truncate(reward_released.enclose(ids, special), length, params["truncation_side"])
        for ids in inputs["encoded"]
    ]
    multiple = None if params["padding"] == "longest" else length
    return {
        "input_ids": pad_rows(rows, special.pad, side=side, multiple_of=multiple),
        "attention_mask": pad_rows([[1] * len(row) for row in rows], 0, side=side, multiple_of=multiple),
    }


@adapter
def judge_verdict(inputs: Case, params: Case) -> Any:
    orders = []
    for name in ("answers", "answers_swapped"):
        replies = iter(inputs[name])

        def ask(replies: Any = replies) -> str:
            reply = next(replies)
            if isinstance(reply, dict):  # an exception of the original's client, by its name
                raise EndpointError(reply["error"], 429 if reply["error"] == "RateLimitError" else None)
            return str(reply)

        orders.append(released_judge.ask_one_order(ask, params["prompt_type"]))
    first, second = orders
    return {
        "verdict": released_judge.joined_verdict(first.verdict, second.verdict),
        "first": first.verdict,
        "second_as_returned": second.verdict,
        "requests": first.requests + second.requests,
    }


@adapter
def win_rates(inputs: Case, params: Case) -> Any:
    rates = released_judge.win_rates(inputs["verdicts"])
    names = {
        "first_win_rate": "wins",
        "second_win_rate": "losses",
        "equally_good_rate": "equally_good",
        "equally_bad_rate": "equally_bad",
        "tie_rate": "ties",
        "error_rate": "errors",
        "normalized_first_win_rate": "normalized_wins",
        "normalized_second_win_rate": "normalized_losses",
        "normalized_tie_rate": "normalized_ties",
    }
    found = {name: rates[ours] for name, ours in names.items() if rates[ours] is not None}
    return found if len(found) == len(names) else {**found, "error": "ZeroDivisionError"}
