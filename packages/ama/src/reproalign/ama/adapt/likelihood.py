"""The likelihood of rows under a merged model, and its gradient in the ratios (eq. 9, arXiv 2309.06256).

The objective is the negative log-likelihood per token, (1 / tokens) Σ -log π(token | before it). Over all rows that is
the mean over D_θ of -log π(a | x) but for a constant factor, so that the two have the same best ratios.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast, reduce
from jaxtyping import Float
from torch import Tensor

from reproalign.ama.adapt.merged import RatioModel
from reproalign.ama.adapt.rows import TokenRow
from reproalign.common.console import track
from reproalign.common.text.collate import IGNORED, pad_rows


@dataclass(frozen=True)
class ObjectiveValue:
    """A value of the objective.

    Attributes:
        value: nats per token.
        gradient: in each ratio; empty if it was not asked for.
        tokens: how many counted.
    """

    value: float
    gradient: list[float]
    tokens: int


@dataclass(frozen=True)
class LikelihoodObjective:
    """The objective (eq. 9) on a model, over processes that each take their share of the rows.

    Attributes:
        model: merged.
        pad_token_id: of the batches.
        autocast: compute in bfloat16 around weights of any precision, as the release does.
    """

    model: RatioModel
    pad_token_id: int
    autocast: bool = False

    def evaluate(self, rows: Sequence[TokenRow], batch_size: int, *, gradient: bool, label: str = "") -> ObjectiveValue:
        """Return the objective over rows, at the model's ratios; all processes get the same numbers.

        Args:
            rows: all of them, in all processes.
            batch_size: rows per forward.
            gradient: take the gradient too.
            label: of the progress bar; empty: none is shown.
        """
        state = PartialState()
        batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
        # Sharded weights are gathered by all processes at once: each makes as many passes, the last ones for nothing.
        turns = -(-len(batches) // state.num_processes)
        mine = batches[state.process_index :: state.num_processes]
        sums = torch.zeros(2, dtype=torch.float64)
        gradients = torch.zeros(len(self.model.names), dtype=torch.float64)
        for turn in track(range(turns), label, shown=bool(label) and state.is_main_process):
            counts = turn < len(mine)
            with torch.set_grad_enabled(gradient):
                total = self._sum(mine[turn] if counts else batches[0])
            if gradient:
                total.backward()  # type: ignore[no-untyped-call]
                taken = self.model.take_gradient()
                gradients += taken * counts
            tokens = sum(row.tokens for row in mine[turn]) if counts else 0
            sums += torch.tensor([float(total.detach()) * counts, tokens], dtype=torch.float64)
        value, tokens_of_all, *gradients_of_all = _add_up(torch.cat([sums, gradients]))
        return ObjectiveValue(
            value / tokens_of_all,
            [entry / tokens_of_all for entry in gradients_of_all] if gradient else [],
            int(tokens_of_all),
        )

    def _sum(self, rows: Sequence[TokenRow]) -> Float[Tensor, ""]:
        device = self.model.device
        scored = [[label != IGNORED for label in row.labels] for row in rows]
        batch = {
            "input_ids": pad_rows([row.ids for row in rows], self.pad_token_id),
            "attention_mask": pad_rows([[1] * len(row.ids) for row in rows], 0),
            "completion_mask": pad_rows(scored, 0),
        }
        with mixed_precision(device, self.autocast):
            answer = self.model.network(**{name: tensor.to(device) for name, tensor in batch.items()}, use_cache=False)
        total: Tensor = -answer.sums.sum()
        return total


def mixed_precision(device: torch.device, enabled: bool) -> AbstractContextManager[Any]:
    """Return the block in which products are computed in bfloat16, or one that changes nothing."""
    return torch.autocast(device.type, torch.bfloat16) if enabled else nullcontext()


def _add_up(numbers: Float[Tensor, " numbers"]) -> list[float]:
    """Add numbers up over the processes, which all go on with those of the first: sums may differ in their last bit."""
    state = PartialState()
    if state.num_processes == 1:
        return numbers.tolist()
    there = numbers.to(state.device)
    total: list[float] = broadcast(reduce(there, "sum")).tolist()  # type: ignore[no-untyped-call]
    return total
