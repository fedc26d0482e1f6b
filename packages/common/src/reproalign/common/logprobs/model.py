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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from reproalign.common.config.model import LogprobsConfig
from reproalign.common.logprobs.chunks import positions_at_once
from reproalign.common.logprobs.head_states import HeadStates
from reproalign.common.logprobs.questions import (
    LogpsQuestion,
    Question,
    StatesQuestion,
    StatisticsQuestion,
    StatisticsRequest,
)
from reproalign.common.models.forward import (
    earlier_forward,
    forwards_kept,
    replace_forward,
    restore_forward,
    unwrap_peft,
)
from reproalign.common.options.check import check

logger = logging.getLogger(__name__)

_LOGPS = "logps"  # the change to a forward


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
            whose logits exist at once; None: chunked, by the vocabulary and the kind of device.

    Returns:
        The way in force: ``chunked``, ``module`` (the head is called chunk by chunk under activation checkpointing:
        adapted and quantised heads), or ``plain``. A fallback is also logged as a warning.

    Raises:
        UserError: for an unknown implementation, or a chunk of no token.
    """
    logprobs = logprobs or LogprobsConfig()
    check(LogprobsConfig, vars(logprobs), "logprobs.")
    implementation, chunk_size = logprobs.implementation, logprobs.chunk_size
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
                question = StatesQuestion(taken_away=_is_partitioned(self) or _is_under_fsdp(self))
                return answer(self, head, chunk_size, scored, question, **kwargs)
        asked = LogpsQuestion() if statistics is None else StatisticsQuestion(statistics)
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
    for module in _changed_modules(model):
        restore_forward(module, _LOGPS)


@contextmanager
def completion_logps_installed(model: nn.Module, logprobs: LogprobsConfig) -> Iterator[None]:
    """Install the computation for a block; what was installed before is in force again afterwards."""
    with forwards_kept(_changed_modules(model), _LOGPS):
        install_completion_logps(model, logprobs)
        yield


def _changed_modules(model: nn.Module) -> list[nn.Module]:
    base = unwrap_peft(model)
    head = base.get_output_embeddings()
    return [base] if head is None else [base, head]


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
    found = LogpsQuestion().of_states(states, ids[0, 1:], None)["logps"]
    tolerance = 1e-3 if hidden.dtype in (torch.float32, torch.float64) else 0.1
    return torch.allclose(found.float(), expected, rtol=tolerance, atol=tolerance)


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
    if isinstance(question, StatesQuestion) or _is_partitioned(base) or _is_under_fsdp(base):
        # A call may gather the head on all ranks, and ranks differ in tokens: one chunk, or they would wait for ever.
        size = max(len(targets), 1)

    def answer_part(hidden: Tensor, targets: Tensor, part: slice) -> Any:
        logits = module(hidden)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        logits = logits * head.scale
        if head.softcap is not None:
            logits = head.softcap * torch.tanh(logits / head.softcap)
        return question.of_logits(logits, targets, part)

    if isinstance(question, StatesQuestion):
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
