"""How the release's weights meet the rows of a batch, and its learning rates; the golden vectors pin the numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from reproalign.more.balance import Balancer
from reproalign.more.config import WeightsConfig
from reproalign.more.groups import ItemCollator
from reproalign.more.released import RowWeights, row_weights, rows_loss, warmup_decay


def weighted(domain: list[int], *, grouped: bool, domains: int = 3, **options) -> tuple[RowWeights, Tensor]:
    """Weights of random pairs of these domains; also which of the pairs get a gradient."""
    generator = torch.Generator().manual_seed(len(domain))
    features = torch.randn(2 * len(domain), 4, dtype=torch.float64, generator=generator)
    scores = torch.tensor([[1.0, 0.0]] * len(domain), dtype=torch.float64)
    rewards = features.sum(1).view_as(scores).requires_grad_()
    momentum = torch.ones(domains, 4, dtype=torch.float64)
    balancer = Balancer(WeightsConfig(**options), [str(k) for k in range(domains)], momentum, "released")
    rows, slot = torch.tensor(domain), torch.arange(2 * len(domain))
    found = row_weights(balancer, features, rewards.detach(), scores, slot, rows, grouped=grouped)
    (gradient,) = torch.autograd.grad(rows_loss(rewards, scores, found.weights, rows, grouped=grouped), rewards)
    return found, gradient.abs().sum(1) > 0


def test_one_group_gives_every_domain_its_weight() -> None:
    found, trained = weighted([0, 1, 2], grouped=True)
    assert found.weights.sum().item() == pytest.approx(1)
    assert found.balance is not None
    assert trained.tolist() == (found.weights > 0).tolist()


def test_of_several_groups_the_first_rows_alone_are_trained_on() -> None:
    """ERRATA Q18: with two groups the rows are 0 0 1 1 2 2, and three weights meet the first three."""
    found, trained = weighted([0, 0, 1, 1, 2, 2], grouped=True)
    assert len(found.weights) == 3
    assert not trained[3:].any()


def test_without_reweighting_groups_get_a_third_three_times() -> None:
    """ERRATA Q5: whatever the number of domains."""
    found, trained = weighted([0, 1, 2, 3, 4], grouped=True, domains=5, rule="uniform")
    assert found.weights.tolist() == pytest.approx([1 / 3] * 3)
    assert trained.tolist() == [True, True, True, False, False]
    assert found.balance is None


def test_without_reweighting_a_mixture_is_weighted_by_the_numbers_of_its_domains() -> None:
    """ERRATA Q19: 2, 0, 1 in the order in which they come, for the first three of four rows."""
    found, trained = weighted([2, 0, 2, 1], grouped=False, rule="uniform")
    assert found.weights.tolist() == [2, 0, 1]
    assert trained.tolist() == [True, False, True, False]


def test_a_mixture_has_the_weights_of_its_domains() -> None:
    found, _ = weighted([2, 0, 2, 1], grouped=False)
    assert found.weights[0] == found.weights[2]
    assert found.balance is not None
    assert found.weights.tolist() == found.balance.weights[torch.tensor([2, 0, 2, 1])].tolist()


def test_groups_are_laid_out_by_domain() -> None:
    def item(domain: int, group: int) -> dict:
        return {"domain": domain, "input_ids": [[domain, group]], "scores": [1.0]}

    groups = [[item(domain, group) for domain in range(3)] for group in range(2)]
    assert ItemCollator(9)(groups)["domain"].tolist() == [0, 1, 2, 0, 1, 2]
    batch = ItemCollator(9, by_domain=True)(groups)
    assert batch["input_ids"].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]]


def test_learning_rates_of_the_published_run() -> None:
    """ERRATA Q20: WarmupDecayLR without warm-up steps still takes two, of which the first two rates are 0."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-6)
    schedule = LambdaLR(optimizer, warmup_decay(2500, 0))
    rates = []
    for _ in range(2500):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:4] == pytest.approx([0, 0, 1e-6, 1e-6])
    assert rates[1250] == pytest.approx(1e-6 * 1251 / 2498)
    assert rates[-1] == pytest.approx(1e-6 * 2 / 2498)
