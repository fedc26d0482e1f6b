"""What a causal language model can be asked of a batch's completion tokens, and the forms of its answers.

A question is answered by final hidden states with their head, a chunk of tokens at a time, or by logits that are there
already. :mod:`reproalign.common.logprobs.model` puts questions to a model, in whichever of the two ways it allows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.utils.generic import ModelOutput

from reproalign.common.logprobs.chunked import chunked_token_logps
from reproalign.common.logprobs.chunks import compute_dtype
from reproalign.common.logprobs.head_states import HeadStates, log_softmax_of
from reproalign.common.logprobs.plain import token_statistics
from reproalign.common.logprobs.statistics import Measure, chunked_token_statistics


@dataclass
class CompletionLogps(ModelOutput):  # type: ignore[misc]
    """Log-probabilities of the completion tokens of a batch, in nats.

    Attributes:
        per_token: (tokens,) of every completion token, rows one after the other.
        rows: (tokens,) the row each belongs to.
        sums: (batch,) their sum per row, log π(y|x).
        means: (batch,) their mean per row; NaN for a row without completion tokens.
        counts: (batch,) completion tokens per row.
    """

    per_token: Any = None  # a Tensor; Any, because accelerate's autocast rebuilds outputs as Cls({field: value, …})
    rows: Tensor | None = None
    sums: Tensor | None = None
    means: Tensor | None = None
    counts: Tensor | None = None


@dataclass
class CompletionStatistics(ModelOutput):  # type: ignore[misc]
    """Statistics of the completion tokens of a batch against a reference, in nats.

    Attributes:
        per_token: name -> (tokens,), of every completion token, rows one after the other.
        sums: name -> (batch,), their sum per row.
        rows: (tokens,) the row each token belongs to.
        counts: (batch,) completion tokens per row.
    """

    per_token: Any = None  # dict[str, Tensor]; see CompletionLogps
    sums: dict[str, Tensor] | None = None
    rows: Tensor | None = None
    counts: Tensor | None = None


@dataclass(frozen=True)
class StatisticsRequest:
    """Which statistics of :mod:`reproalign.common.logprobs.statistics` a policy is asked for, and against what."""

    reference: HeadStates
    names: tuple[str, ...]
    measure: Measure | None = None


class LogpsQuestion:
    """The question for log-probabilities."""

    def of_states(self, states: HeadStates, targets: Tensor, chunk_size: int | None) -> dict[str, Tensor]:
        """Compute log π of every target from states, chunk by chunk."""
        assert states.hidden is not None  # made by the head itself
        assert states.weight is not None
        logps = chunked_token_logps(
            states.hidden,
            states.weight,
            targets,
            bias=states.bias,
            softcap=states.softcap,
            scale=states.scale,
            chunk_size=chunk_size,
        )
        return {"logps": logps}

    def of_logits(self, logits: Tensor, targets: Tensor, part: slice) -> dict[str, Tensor]:
        """Compute log π of every target from logits."""
        return {"logps": logits.log_softmax(1).gather(1, targets[:, None]).squeeze(1)}

    def collect(self, found: dict[str, Tensor], scored: Tensor) -> CompletionLogps:
        """Sum up per row."""
        sums, rows, counts = _by_row(found, scored)
        total = sums["logps"]
        return CompletionLogps(per_token=found["logps"], rows=rows, sums=total, means=total / counts, counts=counts)


@dataclass(frozen=True)
class StatisticsQuestion:
    """The question for token statistics."""

    request: StatisticsRequest

    def of_states(self, states: HeadStates, targets: Tensor, chunk_size: int | None) -> dict[str, Tensor]:
        """Compute the statistics from states, chunk by chunk."""
        return chunked_token_statistics(
            states,
            self.request.reference,
            targets,
            statistics=self.request.names,
            measure=self.request.measure,
            chunk_size=chunk_size,
        )

    def of_logits(self, logits: Tensor, targets: Tensor, part: slice) -> dict[str, Tensor]:
        """Compute the statistics from logits; ``part``: which of the reference's tokens these are."""
        with torch.autocast(logits.device.type, enabled=False):  # it would round the sums over the vocabulary
            ref_logps = log_softmax_of(self.request.reference, part)  # as good as logits: log-softmax leaves them alone
            found = token_statistics(logits, ref_logps, targets, self.request.measure)
        return {name: found[name] for name in self.request.names}

    def collect(self, found: dict[str, Tensor], scored: Tensor) -> CompletionStatistics:
        """Sum up per row."""
        sums, rows, counts = _by_row(found, scored)
        return CompletionStatistics(per_token=found, sums=sums, rows=rows, counts=counts)


@dataclass(frozen=True)
class StatesQuestion:
    """The question for what another model needs to compare itself with this one."""

    taken_away: bool  # whether the head's weights are there only during its forward

    def of_states(self, states: HeadStates, targets: Tensor, chunk_size: int | None) -> HeadStates:
        """Return the states, with weights that outlive the head's forward."""
        weight, bias = states.weight, states.bias
        if self.taken_away:
            assert states.hidden is not None  # made by the head itself
            dtype = compute_dtype(states.hidden)  # what it is read in, of half the size under autocast
            weight = None if weight is None else weight.detach().to(dtype, copy=True)
            bias = None if bias is None else bias.detach().clone()
        return replace(states, weight=weight, bias=bias)

    def of_logits(self, logits: Tensor, targets: Tensor, part: slice) -> HeadStates:
        """Return the logits in the states' place."""
        return HeadStates(logits=logits)


Question = LogpsQuestion | StatisticsQuestion | StatesQuestion


def _by_row(
    per_token: dict[str, Float[Tensor, " tokens"]], scored: Bool[Tensor, "batch positions"]
) -> tuple[dict[str, Float[Tensor, " batch"]], Int[Tensor, " tokens"], Int[Tensor, " batch"]]:
    """Return sums per row, the row of every token, and tokens per row.

    Summed along padded rows, not by index_add: that adds one by one, which costs digits (1e-2 nats at 1,000 tokens in
    float32), and in no fixed order on a GPU.
    """
    sums = {
        name: values.new_zeros(scored.shape).masked_scatter(scored, values).sum(1) for name, values in per_token.items()
    }
    return sums, scored.nonzero(as_tuple=True)[0], scored.sum(1)
