"""The optimiser of the published ratios: AdamW on raw values, with what the release does differently as settings.

In the release (``mask_trainer.py``) a raw value that m linear layers share stands m times in AdamW's list, so that a
step updates it m times in a row with the same gradient; and its gradient is never cleared, so that a step sees the sum
of all gradients so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import AdamW

BETAS = (0.9, 0.999)
EPS = 1e-8


class RawOptimizer:
    """AdamW on one raw value for each group."""

    def __init__(
        self,
        raw: Float[Tensor, " groups"],
        *,
        weight_decay: float = 0.0,
        multiplicity: Sequence[int] | None = None,
        clear: bool = True,
        betas: tuple[float, float] = BETAS,
        eps: float = EPS,
    ) -> None:
        """Begin with ``raw``, in its dtype.

        Args:
            raw: s, copied.
            weight_decay: decoupled; pulls raw values to 0, sigmoids to 1/2.
            multiplicity: updates of each value in one step; None: 1 each.
            clear: forget a step's gradient; otherwise the next is added to it, as in the release.
            betas: of AdamW.
            eps: of AdamW.
        """
        self._values = [value.clone().requires_grad_() for value in raw]
        self._optimizers = [
            AdamW([value], lr=0.0, betas=betas, eps=eps, weight_decay=weight_decay, foreach=False)
            for value in self._values
        ]
        self._multiplicity = list(multiplicity or [1] * len(self._values))
        self._clear = clear

    @property
    def raw(self) -> Float[Tensor, " groups"]:
        """The values in force."""
        return torch.stack([value.detach() for value in self._values])

    def step(self, gradient: Float[Tensor, " groups"], learning_rate: float) -> None:
        """Take a step.

        Args:
            gradient: dL/ds of this step's rows.
            learning_rate: in force.
        """
        steps = zip(self._values, self._optimizers, self._multiplicity, gradient, strict=True)
        for value, optimizer, multiplicity, entry in steps:
            new = entry.to(value.dtype)
            value.grad = new.clone() if self._clear or value.grad is None else value.grad + new
            optimizer.param_groups[0]["lr"] = learning_rate
            for _ in range(multiplicity):
                optimizer.step()

    def state(self) -> dict[str, Any]:
        """Return everything that a later step depends on, as plain values that JSON keeps to the last bit."""
        moments = [
            {name: float(entry) for name, entry in optimizer.state[value].items()}
            for value, optimizer in zip(self._values, self._optimizers, strict=True)
        ]
        gradients = [None if value.grad is None else float(value.grad) for value in self._values]
        return {"raw": self.raw.tolist(), "moments": moments, "gradients": gradients}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state`."""
        for index, (value, optimizer) in enumerate(zip(self._values, self._optimizers, strict=True)):
            with torch.no_grad():
                value.fill_(state["raw"][index])
            gradient = state["gradients"][index]
            value.grad = None if gradient is None else torch.tensor(gradient, dtype=value.dtype)
            moments = state["moments"][index]
            if moments:
                dtypes = {"step": torch.float32}
                optimizer.state[value] = {
                    name: torch.tensor(entry, dtype=dtypes.get(name, value.dtype)) for name, entry in moments.items()
                }
