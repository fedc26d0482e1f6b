"""Domains brought to one size, rows that hold one item of each domain (or one item at all), and their batches."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from reproalign.common.errors import UserError
from reproalign.common.text.collate import pad_rows

Picks = NDArray[np.int64]  # (items, 2): data set and row of each item
ItemRow = dict[str, Any]  # domain, input_ids (responses x tokens), scores
Resample = Callable[..., list[Picks]]


class ReleasedResamplingError(UserError):
    """A size that the release cannot bring a domain to; ``original`` names the exception it stops with."""

    def __init__(self, message: str, original: str) -> None:
        super().__init__(message)
        self.original = original


def resample(sizes: Sequence[int], size: int, *, names: Sequence[str], rule: Resample, seed: int) -> list[Picks]:
    """Bring every domain to ``size`` items: its first ones, or all of them and further ones drawn from them.

    Args:
        sizes: items of each domain.
        size: items wanted of each.
        names: of the domains, for errors.
        rule: :func:`resample_copies` or :func:`resample_released`.
        seed: of the draws.

    Raises:
        UserError: for a size below 1, and where the release fails.
    """
    return rule(sizes, size, random.Random(seed), names=names)


def resample_copies(
    sizes: Sequence[int], size: int, generator: random.Random, *, names: Sequence[str] | None = None
) -> list[Picks]:
    """Bring every domain to ``size`` items: its first ones, or whole copies and then a sample without replacement."""
    picks = []
    for domain, count in enumerate(sizes):
        rows = [*range(count)] * (size // count) + generator.sample(range(count), size % count)
        picks.append(_picks([(domain, row) for row in (range(size) if count >= size else rows)]))
    return picks


def resample_released(
    sizes: Sequence[int], size: int, generator: random.Random, *, names: Sequence[str] | None = None
) -> list[Picks]:
    """Bring every domain to ``size`` items as the release does.

    A domain of n items keeps its first ``size``, or gets e = size - n more: a sample without replacement from a pool,
    which is the domain repeated ⌊e/n⌋ times, once more if the remainder is above 1. The pool is made for e > n alone;
    else the pool of an earlier domain is drawn from, so that items of another domain enter (ERRATA Q4).

    Raises:
        ReleasedResamplingError: if the pool is too small, or there is none.
    """
    pool: list[tuple[int, int]] | None = None
    picks = []
    for domain, count in enumerate(sizes):
        items = [(domain, row) for row in range(min(count, size))]
        extra = size - count
        if extra > 0:
            if extra > count:
                pool = items * (extra // count + (extra % count > 1))
            if pool is None or extra > len(pool):
                # UnboundLocalError is Python's NameError here.
                original = "UnboundLocalError" if pool is None else "ValueError"
                name = domain if names is None else names[domain]
                raise ReleasedResamplingError(_refusal(name, count, size, min(sizes)), original)
            items += generator.sample(pool, extra)
        picks.append(_picks(items))
    return picks


class Groups(TorchDataset[list[ItemRow]]):
    """Rows of one item of each domain, in the domains' order; item i of every domain makes group i.

    Args:
        datasets: tokenised domains, with ``input_ids`` and ``scores``.
        picks: the items of each domain, equally many.
    """

    def __init__(self, datasets: Sequence[Dataset], picks: Sequence[Picks]) -> None:
        if len({len(items) for items in picks}) != 1:
            raise ValueError("groups need equally many items of every domain")
        self.datasets, self.picks = list(datasets), np.stack(list(picks))

    def __len__(self) -> int:
        return int(self.picks.shape[1])

    def __getitem__(self, index: int) -> list[ItemRow]:
        return [_item(self.datasets, domain, pick) for domain, pick in enumerate(self.picks[:, index])]


class Mixture(TorchDataset[list[ItemRow]]):
    """Rows of one item, all domains one after the other.

    Args:
        datasets: tokenised domains, with ``input_ids`` and ``scores``.
        picks: the items of each domain.
        domains: the number of each domain, where they are not counted from 0.
    """

    def __init__(
        self, datasets: Sequence[Dataset], picks: Sequence[Picks], domains: Sequence[int] | None = None
    ) -> None:
        numbers = range(len(picks)) if domains is None else domains
        self.datasets, self.picks = list(datasets), np.concatenate(list(picks))
        self.domains = np.repeat(np.array([*numbers]), [len(items) for items in picks])

    def __len__(self) -> int:
        return len(self.picks)

    def __getitem__(self, index: int) -> list[ItemRow]:
        return [_item(self.datasets, int(self.domains[index]), self.picks[index])]


def all_rows(dataset: int, count: int) -> Picks:
    """Return every row of a data set, in order."""
    return _picks([(dataset, row) for row in range(count)])


@dataclass(frozen=True)
class ItemCollator:
    """Collates rows of items: one row of tokens for every response that is there.

    Args:
        pad_token_id: beside the tokens.
        padding_side: ``right`` or ``left``.
        by_domain: put the items of several groups in the order of their domains, as the release does
            (:mod:`reproalign.more.released`); otherwise they keep that of the rows.
    """

    pad_token_id: int
    padding_side: str = "right"
    by_domain: bool = False

    def __call__(self, rows: Sequence[Sequence[ItemRow]]) -> dict[str, Tensor]:
        """Return the batch of all items of all rows; R is the largest number of responses among them.

        Returns:
            ``input_ids`` and ``attention_mask`` (responses, seq); ``slot`` (responses,): item · R + response;
            ``scores`` (items, R) float32, -1 where an item has fewer responses; ``domain`` (items,).
        """
        items = [item for row in rows for item in row]
        if self.by_domain:
            items.sort(key=lambda item: int(item["domain"]))
        width = max(len(item["scores"]) for item in items)
        ids = [tokens for item in items for tokens in item["input_ids"]]
        slots = [number * width + place for number, item in enumerate(items) for place in range(len(item["scores"]))]
        return {
            "input_ids": pad_rows(ids, self.pad_token_id, side=self.padding_side),
            "attention_mask": pad_rows([[1] * len(tokens) for tokens in ids], 0, side=self.padding_side),
            "slot": torch.tensor(slots),
            "scores": pad_rows(
                [[*item["scores"]] + [-1.0] * (width - len(item["scores"])) for item in items],
                -1.0,
                dtype=torch.float32,
            ),
            "domain": torch.tensor([item["domain"] for item in items]),
        }


def _item(datasets: list[Dataset], domain: int, pick: NDArray[np.int64]) -> ItemRow:
    row = datasets[int(pick[0])][int(pick[1])]
    return {"domain": domain, "input_ids": row["input_ids"], "scores": row["scores"]}


def _picks(items: Sequence[tuple[int, int]]) -> Picks:
    return np.array(items, dtype=np.int64).reshape(-1, 2)


def _refusal(name: str | int, count: int, size: int, smallest: int) -> str:
    return (
        f"data.resampling_size={size}: variant=released cannot bring the {count} items of domain '{name}' to it; sizes "
        f"up to {count} work, and those above {2 * count} that leave no remainder of 1 when divided by {count} (up to "
        f"{smallest} for every domain); or set variant=paper"
    )
