"""The order in which the released trainer took its rows, as far as it is known (ERRATA M1)."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import RandomSampler


class ReleasedOrder(TorchDataset[dict[str, Any]]):
    """Rows in the order of the release: that of a ``RandomSampler`` whose generator nobody seeded.

    With several processes and accelerate up to 0.23 the sampler's generator was a new ``torch.Generator()``, which
    begins at a constant, so that the order depends on the number of rows alone, whatever ``--seed`` is. Every epoch
    draws on from where the last one stopped. A sampler over this table has to be sequential.

    Args:
        rows: in the order of the selection.
    """

    def __init__(self, rows: Dataset) -> None:
        self.rows = rows
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Take the order of an epoch, counted from 0; the training loop calls it."""
        sampler = RandomSampler(range(len(self.rows)), generator=torch.Generator())
        for _ in range(epoch + 1):
            self._order = list(sampler)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict[str, Any]:
        row: dict[str, Any] = self.rows[self._order[place]]
        return row
