"""From golden inputs to this package's functions and back: format translation only, no logic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

Case = dict[str, Any]
ADAPTERS: dict[str, Callable[[Case, Case], Any]] = {}


def adapter(name: str) -> Callable[[Callable[[Case, Case], Any]], Callable[[Case, Case], Any]]:
    """Register an adapter under the golden file's ``function``."""

    def register(function: Callable[[Case, Case], Any]) -> Callable[[Case, Case], Any]:
        ADAPTERS[name] = function
        return function

    return register


def tensor(values: Any) -> Tensor:
    """Return nested lists as float64."""
    return torch.tensor(values, dtype=torch.float64)


# Averaging: names, interpolation, learned merges, grouping.


# Adapting: ratios, regulariser, merged linear layers, the released optimiser.


# Aligning: packing, penalties.


@adapter("group_texts nested in (Mask|Continual|)Finetuner.group_text")
def _group_texts(inputs: Case, params: Case) -> Any:
    from reproalign.ama.align.packing import group_texts

    return group_texts(inputs, params["block_size"])


@adapter("group_text(): block-size resolution (re-derived from the branches of the original)")
def _effective_block_size(inputs: Case, params: Case) -> Any:
    from reproalign.ama.align.packing import effective_block_size

    truncate = params["truncate_to_model_max_length"]
    return {"block_size": effective_block_size(params["block_size"], inputs["model_max_length"], truncate=truncate)}


@adapter("ContinualTrainer.compute_loss_{kd,l1,l2} (task loss replaced by inputs.task_loss)")
def _forgetting_penalties(inputs: Case, params: Case) -> Any:
    from reproalign.ama.align.config import PenaltyConfig
    from reproalign.ama.align.distillation import distance
    from reproalign.ama.align.sft_options import check_penalty
    from reproalign.ama.align.weight_penalty import penalise
    from reproalign.common.logprobs.statistics import HeadStates, chunked_token_statistics

    options = PenaltyConfig(name=params["approach"], weight=params["alpha"])
    weights, distances = check_penalty(options, released=True, strategy="single")
    if weights is not None:
        pairs = [
            (Parameter(tensor(inputs["params"][name])), tensor(inputs["teacher"][name])) for name in inputs["trainable"]
        ]
        value = penalise(weights, pairs)
        grads = [theta.grad.tolist() for theta, _ in pairs if theta.grad is not None]
        return {"loss": inputs["task_loss"] + value.item(), "grads": grads}
    student, teacher = (tensor(inputs[f"{name}_logits"]) for name in ("student", "teacher"))
    student.requires_grad_()
    rows, _, vocabulary = student.shape
    head = torch.eye(vocabulary, dtype=torch.float64)
    states = [HeadStates(logits.reshape(-1, vocabulary), head) for logits in (student, teacher)]
    targets = torch.zeros(len(states[0].hidden), dtype=torch.long)
    statistic, reduction = distances
    found = chunked_token_statistics(*states, targets, statistics=(statistic,))
    value = distance(found[statistic], rows, reduction, params["alpha"])
    value.backward()
    return {"loss": inputs["task_loss"] + value.item(), "grads": [student.grad.tolist()]}


# Rejection sampling: batches of prompts, filters, selection.


# Judging.
