r"""What an objective is: a value whose fields are its options, and whose call is its equation.

    RaDPO(beta=0.1, alpha=0.5, risk=CVaR(level=0.97))(batch)

gives losses, rewards and what else is to be logged. What a batch holds, the objective says by :class:`Needs`, and with
it which trainer runs it: one for each shape of rows.

    rows          trainer                                                 batch               call returns
    pairs         :class:`~reproalign.common.training.pairs.PairTrainer`             :class:`Pairs`        :class:`PairScores`
    examples      :class:`~reproalign.common.training.examples.ExampleTrainer`       :class:`Examples`     :class:`ExampleScores`
    completions   :class:`~reproalign.common.training.completions.CompletionTrainer` :class:`Responses`    :class:`ExampleScores`

Symbols: log π(y|x) is summed over the tokens of the response y, in nats; u = log π(y|x) - log π_ref(y|x).
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from jaxtyping import Bool, Float

from reproalign.common.lazy import torch
from reproalign.common.options.check import check_value


@dataclass(frozen=True)
class Needs:
    """What an objective needs beside the log-probs of its rows under the policy.

    Attributes:
        rows: ``pairs``, ``examples`` or ``completions``.
        reference: of the frozen policy: nothing (``none``), log-probs (``logps``), or the whole distribution at every
            position (``distribution``), which cannot be kept beforehand.
        mismatched: examples with another prompt's response, KTO's estimate of the KL.
        value_head: values of states, PPO's critic: the norm that its gradients are clipped to; None: there is none.
        statistics: of every position, summed over a response: names of
            :mod:`reproalign.common.logprobs.statistics` beside ``logps`` and ``ref_logps``.
        measure: Φ of the statistic ``risk``.
        of_logits: (logits, batch, reference's :class:`~reproalign.common.logprobs.head_states.HeadStates`, chunk size)
            -> sums by name, ``logps`` and ``ref_logps`` among them, for what takes the policy's full logits.
    """

    rows: str
    reference: str = "logps"
    mismatched: bool = False
    value_head: float | None = None
    statistics: tuple[str, ...] = ()
    measure: Callable[..., Any] | None = None
    of_logits: Callable[..., Mapping[str, torch.Tensor]] | None = None


@dataclass(frozen=True)
class Responses:
    """Responses under a policy and its reference.

    Attributes:
        logps: log π(y|x); some objectives also take it token by token.
        tokens: of each response; of use where log-probs are averaged.
        ref_logps: log π_ref(y|x); None: there is no reference.
        statistics: further sums over a response's tokens, by name, e.g. ``forward_kl`` and ``risk``.
        per_token: log-probs of all responses' tokens, one response after the other.
    """

    logps: Float[torch.Tensor, "responses ..."]
    tokens: Float[torch.Tensor, " responses"] | None = None
    ref_logps: Float[torch.Tensor, " responses"] | None = None
    statistics: Mapping[str, torch.Tensor] = field(default_factory=dict)
    per_token: Float[torch.Tensor, " tokens"] | None = None

    @property
    def log_ratios(self) -> Float[torch.Tensor, " responses"]:
        """Log-ratios u (MMPO R2, Ra-DPO R1); log π(y|x) itself without a reference."""
        return self.logps if self.ref_logps is None else self.logps - self.ref_logps

    def halves(self) -> tuple[Responses, Responses]:
        """Return the first half of the responses and the second one, chosen and rejected of a batch of pairs."""
        tokens = (None, None) if self.tokens is None else self.tokens.chunk(2)
        references = (None, None) if self.ref_logps is None else self.ref_logps.chunk(2)
        statistics = {name: values.chunk(2) for name, values in self.statistics.items()}
        per_token: tuple[torch.Tensor | None, ...] = (None, None)
        if self.per_token is not None and tokens[0] is not None:
            first = int(tokens[0].sum())
            per_token = (self.per_token[:first], self.per_token[first:])
        chosen, rejected = (
            Responses(logps, tokens[k], references[k], {name: v[k] for name, v in statistics.items()}, per_token[k])
            for k, logps in enumerate(self.logps.chunk(2))
        )
        return chosen, rejected


@dataclass(frozen=True)
class Pairs:
    """Preference pairs, w ``chosen`` and l ``rejected``; ``p_chosen``: the probability that w is preferred, None: 1."""

    chosen: Responses
    rejected: Responses
    p_chosen: Float[torch.Tensor, " pairs"] | None = None


@dataclass(frozen=True)
class PairScores:
    """What an objective makes of pairs.

    Attributes:
        losses: to be averaged; not necessarily one per pair.
        chosen_rewards: of the chosen responses, without gradient.
        rejected_rewards: of the rejected ones.
        metrics: to log, each averaged over its entries.
    """

    losses: Float[torch.Tensor, " losses"]
    chosen_rewards: Float[torch.Tensor, "pairs ..."]
    rejected_rewards: Float[torch.Tensor, "pairs ..."]
    metrics: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Examples:
    """Single responses, each desirable or not; matrices are 0 behind a response's end.

    Attributes:
        logps: log π(y|x).
        ref_logps: log π_ref(y|x).
        desirable: the labels; all or none may be.
        mask: which entries of the matrices are tokens.
        token_logps: per token.
        ref_token_logps: likewise of the reference.
        values: of a model with a value head, V of the state before each token.
        advantages: what an objective with several steps per batch kept of the first of them.
        kl: KTO's estimate, max(0, mean log-ratio of mismatched rows); without gradient.
        tokenwise_kl: per mismatched row, the largest max(0, log-ratio) of a token; without gradient.
    """

    logps: Float[torch.Tensor, " examples"]
    ref_logps: Float[torch.Tensor, " examples"]
    desirable: Bool[torch.Tensor, " examples"]
    mask: Bool[torch.Tensor, "examples tokens"] | None = None
    token_logps: Float[torch.Tensor, "examples tokens"] | None = None
    ref_token_logps: Float[torch.Tensor, "examples tokens"] | None = None
    values: Float[torch.Tensor, "examples tokens"] | None = None
    advantages: Float[torch.Tensor, "examples tokens"] | None = None
    kl: Float[torch.Tensor, ""] | None = None
    tokenwise_kl: Float[torch.Tensor, " examples"] | None = None

    @property
    def log_ratios(self) -> Float[torch.Tensor, " examples"]:
        """U."""
        return self.logps - self.ref_logps


@dataclass(frozen=True)
class ExampleScores:
    """What an objective makes of single responses.

    Attributes:
        losses: to be averaged; not necessarily one per example.
        rewards: of the examples, without gradient.
        metrics: to log, each averaged over its entries.
    """

    losses: Float[torch.Tensor, " losses"]
    rewards: Float[torch.Tensor, " examples"]
    metrics: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Objective:
    """What a policy is trained on. A subclass adds options as fields, and the equation as ``__call__``."""

    name: ClassVar[str]  # as it is chosen on the command line

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        check_value(self)

    @property
    def needs(self) -> Needs:
        """What the trainer has to provide."""
        raise NotImplementedError

    def __call__(self, batch: Any) -> Any:
        """Return the losses and rewards of a batch."""
        raise NotImplementedError

    @property
    def steps_per_batch(self) -> int:
        """How many optimiser steps each batch of examples is trained on, one after the other."""
        return 1

    def advantages(self, batch: Examples) -> torch.Tensor | None:
        """Return what the first step on a batch makes of it, to be kept for all of them; None: nothing is kept."""
        return None
