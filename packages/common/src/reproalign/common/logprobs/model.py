"""Completion log-probs inside a causal language model's own ``forward``.

Wrappers (DDP, FSDP, DeepSpeed, accelerate's autocast) act on the model's forward. So the computation is put there: a
model on which :func:`install_completion_logps` was called answers ``model(..., completion_mask=mask)`` with
log-probabilities, and every other call as before.

Sharding wrappers act on the output head's forward too: FSDP may give the head a group of its own, and ZeRO-3 gathers
weights around the module that owns them. So the head's forward likewise learns to answer ``head(hidden, targets)``,
and it is called once per forward on every rank, however many tokens and chunks a rank has: collectives always meet.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int, Shaped
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from reproalign.common.errors import choose
from reproalign.common.logprobs.chunked import chunked_token_logps
from reproalign.common.logprobs.chunks import default_chunk_size
from reproalign.common.logprobs.plain import IGNORE, token_logps

logger = logging.getLogger(__name__)

_ORIGINAL = "_reproalign_original_forward"  # where a changed module keeps its own forward


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

    per_token: Tensor | None = None
    rows: Tensor | None = None
    sums: Tensor | None = None
    means: Tensor | None = None
    counts: Tensor | None = None


@dataclass(frozen=True)
class Head:
    """How a model turns hidden states into logits beyond its linear head."""

    softcap: float | None = None
    scale: float = 1.0


def install_completion_logps(
    model: nn.Module, *, implementation: str = "chunked", chunk_size: int | None = None
) -> str:
    """Teach ``model`` (a causal language model, or one wrapped by PEFT) to answer ``completion_mask=``.

    Args:
        model: changed in place; installing again replaces the earlier settings.
        implementation: ``chunked`` (:mod:`~reproalign.common.logprobs.chunked`) or ``plain`` (full logits).
        chunk_size: tokens whose logits exist at once; None: chosen from the vocabulary size.

    Returns:
        The way in force: ``chunked``, ``module`` (the head is called chunk by chunk under activation checkpointing:
        adapted and quantised heads), or ``plain``. A fallback is also logged as a warning.

    Raises:
        UserError: for an unknown implementation.
    """
    choose("logprobs.implementation", implementation, ["chunked", "plain"])
    base = causal_lm(model)
    uninstall_completion_logps(model)
    head = Head(
        softcap=getattr(base.config, "final_logit_softcapping", None),
        scale=getattr(base.config, "logit_scale", None) or 1.0 / (getattr(base.config, "logits_scaling", None) or 1.0),
    )
    way, reason = ("plain", None) if implementation == "plain" else _choose_way(base, head)
    if reason:
        logger.warning("chunked log-probs are not possible here (%s): using the '%s' way", reason, way)
    compute: Callable[..., CompletionLogps] = {"chunked": _direct, "module": _through_module, "plain": _plain}[way]

    def forward(self: PreTrainedModel, *args: Any, completion_mask: Tensor | None = None, **kwargs: Any) -> Any:
        if completion_mask is None:
            return self.__dict__[_ORIGINAL](*args, **kwargs)
        return compute(self, head, chunk_size, completion_mask, **kwargs)

    def head_forward(self: nn.Linear, hidden: Tensor, targets: Tensor | None = None) -> Tensor:
        if targets is None:
            return self.__dict__[_ORIGINAL](hidden)  # type: ignore[no-any-return]
        return _chunked(self, head, chunk_size, hidden, targets)

    _replace_forward(base, forward)
    if way == "chunked":
        _replace_forward(base.get_output_embeddings(), head_forward)
    return way


def uninstall_completion_logps(model: nn.Module) -> None:
    """Give ``model`` its own forward back; nothing happens if none was installed."""
    base = causal_lm(model)
    for module in (base, base.get_output_embeddings()):
        original = module.__dict__.pop(_ORIGINAL, None)
        if original is not None:
            module.forward = original


def _replace_forward(module: nn.Module, function: Callable[..., Any]) -> None:
    """Let ``function`` answer for ``module``. It finds the old forward in the module, not in a closure, since a deep
    copy of the module must call its own.
    """
    module.__dict__[_ORIGINAL] = module.forward
    module.forward = MethodType(function, module)


def causal_lm(model: nn.Module) -> PreTrainedModel:
    """Return the causal language model inside a PEFT wrapper, or ``model`` itself."""
    return cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)


def _choose_way(base: PreTrainedModel, head: Head) -> tuple[str, str | None]:
    module = base.get_output_embeddings()
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
    expected = token_logps(logits.float(), ids)[0]
    if not expected.isfinite().all():
        return True  # nothing to compare with: ranks that await their weights from the first one hold anything
    found = _chunked(cast(nn.Linear, base.get_output_embeddings()), head, None, hidden[0, :-1], ids[0, 1:])
    tolerance = 1e-3 if hidden.dtype in (torch.float32, torch.float64) else 0.1
    return torch.allclose(found.float(), expected, rtol=tolerance, atol=tolerance)


def _hidden_states(
    base: PreTrainedModel, scored: Bool[Tensor, "batch positions"], input_ids: Int[Tensor, "batch seq"], **kwargs: Any
) -> tuple[Float[Tensor, "tokens hidden"], Int[Tensor, " tokens"]]:
    """Run the decoder; return the states that predict completion tokens, and those tokens."""
    hidden = base.get_decoder()(input_ids=input_ids, **kwargs).last_hidden_state
    return hidden[:, :-1][scored], input_ids[:, 1:][scored]


def _chunked(module: nn.Linear, head: Head, chunk_size: int | None, hidden: Tensor, targets: Tensor) -> Tensor:
    return chunked_token_logps(
        hidden,
        module.weight,
        targets,
        bias=module.bias,
        softcap=head.softcap,
        scale=head.scale,
        chunk_size=chunk_size,
    )


def _direct(
    base: PreTrainedModel,
    head: Head,
    chunk_size: int | None,
    completion_mask: Shaped[Tensor, "batch seq"],
    **kwargs: Any,
) -> CompletionLogps:
    scored = completion_mask[:, 1:].bool()
    hidden, targets = _hidden_states(base, scored, **kwargs)
    return _collect(base.get_output_embeddings()(hidden, targets=targets), scored)


def _through_module(
    base: PreTrainedModel,
    head: Head,
    chunk_size: int | None,
    completion_mask: Shaped[Tensor, "batch seq"],
    **kwargs: Any,
) -> CompletionLogps:
    scored = completion_mask[:, 1:].bool()
    hidden, targets = _hidden_states(base, scored, **kwargs)
    module = base.get_output_embeddings()
    size = chunk_size or default_chunk_size(base.config.get_text_config().vocab_size, hidden.device)
    if _is_partitioned(base) or any(isinstance(part, FSDPModule) for part in base.modules()):
        # A call may gather the head on all ranks, and ranks differ in tokens: one chunk, or they would wait for ever.
        # (FSDP's weights look whole as long as they are gathered, hence the second question.)
        size = max(len(targets), 1)

    def part_logps(part: Tensor, part_targets: Tensor) -> Tensor:
        logits = module(part)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        logits = logits * head.scale
        if head.softcap is not None:
            logits = head.softcap * torch.tanh(logits / head.softcap)
        logps: Tensor = logits.log_softmax(-1)
        return logps.gather(1, part_targets[:, None]).squeeze(1)

    # At least one call, even without tokens: the graph must reach the head on every rank.
    starts = range(0, max(len(targets), 1), size)
    parts = [
        checkpoint(part_logps, hidden[start : start + size], targets[start : start + size], use_reentrant=False)
        for start in starts
    ]
    return _collect(torch.cat(parts), scored)


def _plain(
    base: PreTrainedModel,
    head: Head,
    chunk_size: int | None,
    completion_mask: Shaped[Tensor, "batch seq"],
    **kwargs: Any,
) -> CompletionLogps:
    logits = base.__dict__[_ORIGINAL](**kwargs).logits
    logits = logits if logits.dtype == torch.float64 else logits.float()
    scored = completion_mask.bool()
    labels = kwargs["input_ids"].masked_fill(~scored, IGNORE)
    return _collect(token_logps(logits, labels)[scored[:, 1:]], scored[:, 1:])


def _collect(per_token: Float[Tensor, " tokens"], scored: Bool[Tensor, "batch positions"]) -> CompletionLogps:
    counts = scored.sum(1)
    # Summed along padded rows, not by index_add: that adds one by one, which costs digits (1e-2 nats at 1,000 tokens
    # in float32), and in no fixed order on a GPU.
    sums = per_token.new_zeros(scored.shape).masked_scatter(scored, per_token).sum(1)
    rows = scored.nonzero(as_tuple=True)[0]
    return CompletionLogps(per_token=per_token, rows=rows, sums=sums, means=sums / counts, counts=counts)
