"""Penalties towards θ_0 equal what autograd makes of their equations, whatever is sharded, chunked or padded."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn import Parameter

from reproalign.ama.align.config import PenaltyConfig
from reproalign.ama.align.distillation import all_positions, distance, squared_distance
from reproalign.ama.align.sft_options import check_penalty
from reproalign.ama.align.weight_penalty import Start, WeightPenalty, penalise
from reproalign.ama.rules import PAPER, RELEASED
from reproalign.common.errors import UserError
from reproalign.common.logprobs.head_states import HeadStates
from reproalign.common.logprobs.model import install_completion_logps
from reproalign.common.logprobs.questions import StatisticsRequest
from reproalign.common.logprobs.statistics import chunked_token_statistics
from reproalign.common.models.tiny import tiny_model

SHAPES = ((3, 4), (5,), (2, 2, 2))


def weights(seed: int) -> list[tuple[Parameter, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.randn(2, *shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    draw[1][0, :2] = draw[1][1, :2]  # some weights have not moved
    return [(Parameter(theta), start) for theta, start in draw]


def explicit(penalty: WeightPenalty, pairs: list[tuple[Parameter, Tensor]]) -> Tensor:
    deltas = torch.cat([(theta - start).flatten() for theta, start in pairs])
    factor = penalty.factor / (len(deltas) if penalty.mean else 1)
    if penalty.order == 1:
        return factor * deltas.abs().sum()
    return factor * (deltas.norm() if penalty.root else deltas.square().sum())


@given(
    seed=st.integers(0, 99),
    order=st.sampled_from([1, 2]),
    root=st.booleans(),
    mean=st.booleans(),
    factor=st.floats(0, 1e4),
)
def test_the_gradient_is_autograds_and_comes_on_top_of_what_is_there(
    seed: int, order: int, root: bool, mean: bool, factor: float
) -> None:
    """Eq. 2: its gradient is added to what the loss left in ``grad``."""
    penalty = WeightPenalty(order, factor, mean=mean, root=root and order == 2)
    pairs = weights(seed)
    expected = explicit(penalty, pairs)
    grads = torch.autograd.grad(expected, [theta for theta, _ in pairs])
    for theta, _ in pairs:
        theta.grad = torch.ones_like(theta)
    torch.testing.assert_close(penalise(penalty, pairs, gradient_scale=8.0), expected.detach(), rtol=1e-12, atol=1e-12)
    for (theta, _), grad in zip(pairs, grads, strict=True):
        torch.testing.assert_close(theta.grad, 1 + 8 * grad, rtol=1e-10, atol=1e-10)


def test_weights_that_have_not_moved_are_not_pulled() -> None:
    pairs = [(Parameter(start), start) for _, start in weights(0)]
    for order, root in ((1, False), (2, False), (2, True)):
        assert penalise(WeightPenalty(order, 3.0, root=root), pairs) == 0
    assert all(theta.grad is not None and not theta.grad.any() for theta, _ in pairs)


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}
    torch.distributed.init_process_group("gloo")
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(("order", "root"), [(1, False), (2, False), (2, True)])
def test_shards_are_penalised_as_the_whole(mesh: DeviceMesh, order: int, root: bool) -> None:
    model = tiny_model(dtype=torch.float64)
    start = Start(model)
    whole = [(Parameter(weight.detach() + 0.1), weight.detach().clone()) for weight in model.parameters()]
    for module in list(model.modules()):  # as fully_shard leaves them
        for name, weight in list(module.named_parameters(recurse=False)):
            moved = weight.detach() + 0.1
            module.register_parameter(name, Parameter(distribute_tensor(moved, mesh, [Shard(0)])))
    penalty = WeightPenalty(order, 2.0, root=root)
    found = penalise(penalty, start.beside(model))
    torch.testing.assert_close(found, penalise(penalty, whole))
    for weight, (theta, _) in zip(model.parameters(), whole, strict=True):
        torch.testing.assert_close(weight.grad.full_tensor(), theta.grad)


@settings(max_examples=25)
@given(seed=st.integers(0, 99), chunk=st.integers(1, 7), name=st.sampled_from(["forward_kl", "reverse_kl", "risk"]))
def test_distances_of_distributions(seed: int, chunk: int, name: str) -> None:
    """R13, both forms, against full distributions, with their gradients."""
    torch.manual_seed(seed)
    hidden, weight, other = (torch.randn(n, 4, dtype=torch.float64) for n in (6, 9, 9))
    hidden.requires_grad_()
    policy, reference = (hidden @ weight.T).log_softmax(1), (hidden.detach() @ other.T).log_softmax(1)
    expected = {
        "forward_kl": (reference.exp() * (reference - policy)).sum(1),
        "reverse_kl": (policy.exp() * (policy - reference)).sum(1),
        "risk": (policy.exp() - reference.exp()).square().sum(1),
    }[name]
    found = chunked_token_statistics(
        HeadStates(hidden, weight),
        HeadStates(hidden.detach(), other),
        torch.zeros(6, dtype=torch.long),
        statistics=(name,),
        measure=squared_distance,
        chunk_size=chunk,
    )[name]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    for reduction, plain in (("row", expected.sum() / 2), ("token", expected.mean())):
        value = distance(found, 2, reduction, 0.7)
        torch.testing.assert_close(value, 0.7 * plain)
        one, two = (torch.autograd.grad(total, hidden, retain_graph=True)[0] for total in (value, 0.7 * plain))
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


def test_every_position_of_every_row_counts_the_last_one_too() -> None:
    student, teacher = tiny_model(seed=0, dtype=torch.float64), tiny_model(seed=1, dtype=torch.float64)
    ids = torch.arange(12).reshape(2, 6) + 7
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    expected = torch.zeros((), dtype=torch.float64)
    for row, length in zip(ids, (6, 4), strict=True):
        new, old = (model(row[None, :length]).logits[0].log_softmax(1) for model in (student, teacher))
        expected = expected + (old.exp() * (old - new)).sum()
    for model in (student, teacher):
        install_completion_logps(model)
    inputs = all_positions(ids, mask)
    request = StatisticsRequest(teacher(**inputs, head_states=True), ("logps", "forward_kl"))
    found = student(**inputs, statistics=request).per_token["forward_kl"]
    assert len(found) == 10
    torch.testing.assert_close(distance(found, 2, "row", 1.0), expected / 2)


@pytest.mark.parametrize(
    ("options", "paper", "released"),
    [
        ({"name": "l1"}, (WeightPenalty(1, 0.5), None), (WeightPenalty(1, 0.5e5, mean=True), None)),
        ({"name": "l2"}, (WeightPenalty(2, 0.5, root=True), None), (WeightPenalty(2, 0.5e9, mean=True), None)),
        ({"name": "kd"}, (None, ("risk", "token")), (None, ("forward_kl", "row"))),
        ({"name": "kl"}, (None, ("reverse_kl", "token")), (None, ("reverse_kl", "row"))),
        (
            {"name": "l2", "scale": 4.0, "mean": False, "squared": True},
            (WeightPenalty(2, 2.0), None),
            (WeightPenalty(2, 2.0), None),
        ),
    ],
)
def test_what_a_variant_means(options: dict[str, object], paper: object, released: object) -> None:
    config = PenaltyConfig(**options, weight=0.5)
    assert check_penalty(config, PAPER.penalty, strategy="single") == paper
    assert check_penalty(config, RELEASED.penalty, strategy="fsdp") == released


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "l1"}, "penalty.name=l1 needs penalty.weight"),
        ({"weight": 1.0}, "penalty.weight has no meaning with penalty.name=none"),
        ({"name": "l1", "weight": 1.0, "squared": True}, "penalty.squared has no meaning with penalty.name=l1"),
        ({"name": "kl", "weight": 1.0, "distance": "kl"}, "penalty.distance has no meaning with penalty.name=kl"),
    ],
)
def test_penalties_that_cannot_be(options: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_penalty(PenaltyConfig(**options), PAPER.penalty, strategy="single")


def test_deepspeed_keeps_its_gradients() -> None:
    with pytest.raises(UserError, match=r"use launch=single, ddp or fsdp, not launch\.strategy=zero2"):
        check_penalty(PenaltyConfig(name="l2", weight=1.0), PAPER.penalty, strategy="zero2")
