"""Completion log-probs inside a causal language model's own ``forward``.

Wrappers (DDP, FSDP, DeepSpeed, accelerate's autocast) act on the model's forward. So the computation is put there: a
model on which :func:`install_completion_logps` was called answers

    model(..., completion_mask=mask)                        log-probabilities of the completion tokens
    model(..., completion_mask=mask, head_states=True)      what a reference hands to a policy: :class:`HeadStates`
    model(..., completion_mask=mask, statistics=request)    token statistics against such a reference

and every other call as before.

Sharding wrappers act on the output head's forward too: FSDP may give the head a group of its own, and ZeRO-3 gathers
weights around the module that owns them. So the head's forward likewise learns to let a function read its weights,
``head(hidden, read=function)``, and it is called once per forward on every rank, however many tokens and chunks a rank
has: collectives always meet.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from reproalign.common.config.model import LogprobsConfig
from reproalign.common.errors import UserError, choose
from reproalign.common.logprobs.chunked import chunked_token_logps
from reproalign.common.logprobs.chunks import compute_dtype, positions_at_once
from reproalign.common.logprobs.plain import token_statistics
from reproalign.common.logprobs.statistics import HeadStates, Measure, chunked_token_statistics, log_softmax_of
from reproalign.common.models.forward import earlier_forward, replace_forward, restore_forward, unwrap_peft

logger = logging.getLogger(__name__)

_LOGPS = "logps"  # the change to a forward


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

    per_token: Any = (
        None  # a Tensor; accelerate's autocast rebuilds outputs by giving all fields in a dict as the first
    )
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


@dataclass(frozen=True)
class Head:
    """How a model turns hidden states into logits beyond its linear head."""

    softcap: float | None = None
    scale: float = 1.0


def install_completion_logps(model: nn.Module, logprobs: LogprobsConfig | None = None) -> str:
    """Teach ``model`` (a causal language model, or one wrapped by PEFT) to answer ``completion_mask=``.

    Args:
        model: changed in place; installing again replaces the earlier settings.
        logprobs: ``chunked`` (:mod:`~reproalign.common.logprobs.chunked`) or ``plain`` (full logits), and the tokens
            whose logits exist at once; None: chunked, by the vocabulary and the memory there is.

    Returns:
        The way in force: ``chunked``, ``module`` (the head is called chunk by chunk under activation checkpointing:
        adapted and quantised heads), or ``plain``. A fallback is also logged as a warning.

    Raises:
        UserError: for an unknown implementation, or a chunk of no token.
    """
    logprobs = logprobs or LogprobsConfig()
    implementation, chunk_size = logprobs.implementation, logprobs.chunk_size
    choose("logprobs.implementation", implementation, ["chunked", "plain"])
    if chunk_size is not None and chunk_size < 1:
        raise UserError(f"logprobs.chunk_size={chunk_size} must be at least 1")
    base = unwrap_peft(model)
    uninstall_completion_logps(model)
    head = Head(
        softcap=getattr(base.config, "final_logit_softcapping", None),
        scale=getattr(base.config, "logit_scale", None) or 1.0 / (getattr(base.config, "logits_scaling", None) or 1.0),
    )
    way, reason = ("plain", None) if implementation == "plain" else _choose_way(base, head)
    if reason:
        logger.warning("chunked log-probs are not possible here (%s): using the '%s' way", reason, way)
    answer = {"chunked": _direct, "module": _through_module, "plain": _plain}[way]

    def forward(
        self: PreTrainedModel,
        *args: Any,
        completion_mask: Tensor | None = None,
        head_states: bool = False,
        statistics: StatisticsRequest | None = None,
        **kwargs: Any,
    ) -> Any:
        if completion_mask is None:
            return earlier_forward(self, _LOGPS)(*args, **kwargs)
        scored = completion_mask[:, 1:].bool()
        if head_states:
            with torch.no_grad():
                question = _States(taken_away=_is_partitioned(self) or _is_under_fsdp(self))
                return answer(self, head, chunk_size, scored, question, **kwargs)
        asked = _Logps() if statistics is None else _Statistics(statistics)
        return asked.collect(answer(self, head, chunk_size, scored, asked, **kwargs), scored)

    def head_forward(
        self: nn.Linear, hidden: Tensor, read: Callable[[HeadStates], Any] | None = None
    ) -> Tensor | HeadStates | dict[str, Tensor]:
        if read is None:
            return earlier_forward(self, _LOGPS)(hidden)  # type: ignore[no-any-return]
        return read(HeadStates(hidden, self.weight, self.bias, head.softcap, head.scale))  # type: ignore[no-any-return]

    replace_forward(base, _LOGPS, forward)
    if way == "chunked":
        replace_forward(base.get_output_embeddings(), _LOGPS, head_forward)
    return way


def uninstall_completion_logps(model: nn.Module) -> None:
    """Give ``model`` its own forward back; nothing happens if none was installed."""
    base = unwrap_peft(model)
    for module in (base, base.get_output_embeddings()):
        if module is not None:
            restore_forward(module, _LOGPS)


def _choose_way(base: PreTrainedModel, head: Head) -> tuple[str, str | None]:
    module = base.get_output_embeddings()
    if module is None:
        return "plain", f"a {type(base).__name__} has no head of its own"
    # Quantised and adapted heads compute something else than x Wᵀ + b; a class that FSDP made of nn.Linear does not.
    if not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward:
        return "module", f"the head is a {type(module).__name__}, not a plain linear layer"
    if not _is_partitioned(base) and not _head_is_understood(base, head):
        return "plain", f"{type(base).__name__} changes its logits in a way that is not known here"
    return "chunked", None


def _is_partitioned(module: nn.Module) -> bool:
    """Whether weights are away: not yet loaded, or sharded by DeepSpeed or FSDP."""
    return any(
        parameter.is_meta or hasattr(parameter, "ds_id") or isinstance(parameter, DTensor)
        for parameter in module.parameters()
    )


def _is_under_fsdp(base: nn.Module) -> bool:
    """Whether FSDP shards it: :func:`_is_partitioned` cannot see that as long as the weights are gathered."""
    return any(isinstance(part, FSDPModule) for part in base.modules())


@torch.no_grad()
def _head_is_understood(base: PreTrainedModel, head: Head) -> bool:
    """Compare with the model's own logits on a few tokens: an unknown scaling must not go unnoticed."""
    device = next(base.parameters()).device
    ids = torch.arange(3, 7, device=device)[None] % base.config.get_text_config().vocab_size
    training = base.training
    base.eval()
    try:
        logits = base(input_ids=ids, use_cache=False).logits
        hidden = base.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    finally:
        base.train(training)
    expected = logits[0, :-1].float().log_softmax(1).gather(1, ids[0, 1:, None]).squeeze(1)
    if not expected.isfinite().all():
        return True  # nothing to compare with: ranks that await their weights from the first one hold anything
    module = cast(nn.Linear, base.get_output_embeddings())
    states = HeadStates(hidden[0, :-1], module.weight, module.bias, head.softcap, head.scale)
    found = _Logps().of_states(states, ids[0, 1:], None)["logps"]
    tolerance = 1e-3 if hidden.dtype in (torch.float32, torch.float64) else 0.1
    return torch.allclose(found.float(), expected, rtol=tolerance, atol=tolerance)


class _Logps:
    """The question for log-probabilities: how to answer it from states or logits, and in which form."""

    def of_states(self, states: HeadStates, targets: Tensor, chunk_size: int | None) -> dict[str, Tensor]:
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
        return {"logps": logits.log_softmax(1).gather(1, targets[:, None]).squeeze(1)}

    def collect(self, found: dict[str, Tensor], scored: Tensor) -> CompletionLogps:
        sums, rows, counts = _by_row(found, scored)
        total = sums["logps"]
        return CompletionLogps(per_token=found["logps"], rows=rows, sums=total, means=total / counts, counts=counts)


@dataclass(frozen=True)
class _Statistics:
    """The question for token statistics."""

    request: StatisticsRequest

    def of_states(self, states: HeadStates, targets: Tensor, chunk_size: int | None) -> dict[str, Tensor]:
        return chunked_token_statistics(
            states,
            self.request.reference,
            targets,
            statistics=self.request.names,
            measure=self.request.measure,
            chunk_size=chunk_size,
        )

    def of_logits(self, logits: Tensor, targets: Tensor, part: slice) -> dict[str, Tensor]:
        with torch.autocast(logits.device.type, enabled=False):  # it would round the sums over the vocabulary
            ref_logps = log_softmax_of(self.request.reference, part)  # as good as logits: log-softmax leaves them alone
            found = token_statistics(logits, ref_logps, targets, self.request.measure)
        return {name: found[name] for name in self.request.names}

    def collect(self, found: dict[str, Tensor], scored: Tensor) -> CompletionStatistics:
        sums, rows, counts = _by_row(found, scored)
        return CompletionStatistics(per_token=found, sums=sums, rows=rows, counts=counts)


@dataclass(frozen=True)
class _States:
    """The question for what another model needs to compare itself with this one."""

    taken_away: bool  # whether the head's weights are there only during its forward

    def of_states(self, states: HeadStates, targets: Tensor, chunk_size: int | None) -> HeadStates:
        weight, bias = states.weight, states.bias
        if self.taken_away:
            assert states.hidden is not None  # made by the head itself
            dtype = compute_dtype(states.hidden)  # what it is read in, of half the size under autocast
            weight = None if weight is None else weight.detach().to(dtype, copy=True)
            bias = None if bias is None else bias.detach().clone()
        return replace(states, weight=weight, bias=bias)

    def of_logits(self, logits: Tensor, targets: Tensor, part: slice) -> HeadStates:
        return HeadStates(logits=logits)


Question = _Logps | _Statistics | _States


def _hidden_states(
    base: PreTrainedModel, scored: Bool[Tensor, "batch positions"], input_ids: Int[Tensor, "batch seq"], **kwargs: Any
) -> tuple[Float[Tensor, "tokens hidden"], Int[Tensor, " tokens"]]:
    """Run the decoder; return the states that predict completion tokens, and those tokens."""
    hidden = base.get_decoder()(input_ids=input_ids, **kwargs).last_hidden_state
    return hidden[:, :-1][scored], input_ids[:, 1:][scored]


def _direct(
    base: PreTrainedModel, head: Head, chunk_size: int | None, scored: Tensor, question: Question, **kwargs: Any
) -> Any:
    hidden, targets = _hidden_states(base, scored, **kwargs)
    return base.get_output_embeddings()(hidden, read=lambda states: question.of_states(states, targets, chunk_size))


def _through_module(
    base: PreTrainedModel, head: Head, chunk_size: int | None, scored: Tensor, question: Question, **kwargs: Any
) -> Any:
    hidden, targets = _hidden_states(base, scored, **kwargs)
    module = base.get_output_embeddings()
    size = positions_at_once(chunk_size, base.config.get_text_config().vocab_size, hidden.device)
    if isinstance(question, _States) or _is_partitioned(base) or _is_under_fsdp(base):
        # A call may gather the head on all ranks, and ranks differ in tokens: one chunk, or they would wait for ever.
        size = max(len(targets), 1)

    def answer_part(hidden: Tensor, targets: Tensor, part: slice) -> Any:
        logits = module(hidden)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        logits = logits * head.scale
        if head.softcap is not None:
            logits = head.softcap * torch.tanh(logits / head.softcap)
        return question.of_logits(logits, targets, part)

    if isinstance(question, _States):
        return answer_part(hidden, targets, slice(None))
    # At least one call, even without tokens: the graph must reach the head on every rank.
    parts = [slice(start, start + size) for start in range(0, max(len(targets), 1), size)]
    found = [checkpoint(answer_part, hidden[part], targets[part], part, use_reentrant=False) for part in parts]
    return {name: torch.cat([values[name] for values in found]) for name in found[0]}


def _plain(
    base: PreTrainedModel, head: Head, chunk_size: int | None, scored: Tensor, question: Question, **kwargs: Any
) -> Any:
    logits = earlier_forward(base, _LOGPS)(**kwargs).logits[:, :-1][scored]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return question.of_logits(logits, kwargs["input_ids"][:, 1:][scored], slice(None))


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
