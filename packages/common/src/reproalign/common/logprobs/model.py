"""Completion log-probs inside a causal language model's own ``forward``.

Wrappers (DDP, FSDP, DeepSpeed, accelerate's autocast) act on the model's forward. So the computation is put there: a
model on which :func:`install_completion_logps` was called answers ``model(..., completion_mask=mask)`` with
log-probabilities, and every other call as before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any, cast

import torch
from jaxtyping import Float, Int, Shaped
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from reproalign.common.errors import choose
from reproalign.common.logprobs.chunked import chunked_token_logps, default_chunk_size
from reproalign.common.logprobs.plain import IGNORE, token_logps

logger = logging.getLogger(__name__)

_ORIGINAL = "_reproalign_original_forward"  # where an installed model keeps its own forward


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
        adapted, quantised or ZeRO-3-sharded heads), or ``plain``. A fallback is also logged as a warning.

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
    original = base.forward
    compute: Callable[..., CompletionLogps] = {"chunked": _direct, "module": _through_module, "plain": _plain}[way]

    def forward(self: PreTrainedModel, *args: Any, completion_mask: Tensor | None = None, **kwargs: Any) -> Any:
        if completion_mask is None:
            return original(*args, **kwargs)
        return compute(self, head, chunk_size, original, completion_mask, **kwargs)

    base.forward = MethodType(forward, base)
    base.__dict__[_ORIGINAL] = original
    return way


def uninstall_completion_logps(model: nn.Module) -> None:
    """Give ``model`` its own forward back; nothing happens if none was installed."""
    base = causal_lm(model)
    original = base.__dict__.pop(_ORIGINAL, None)
    if original is not None:
        base.forward = original


def causal_lm(model: nn.Module) -> PreTrainedModel:
    """Return the causal language model inside a PEFT wrapper, or ``model`` itself."""
    return cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)


def _choose_way(base: PreTrainedModel, head: Head) -> tuple[str, str | None]:
    module = base.get_output_embeddings()
    if any(hasattr(parameter, "ds_id") for parameter in module.parameters()):
        return "module", "ZeRO-3 shards the head and gathers it only around the module's own call"
    if type(module) is not nn.Linear:
        return "module", f"the head is a {type(module).__name__}, not a plain linear layer"
    if any(parameter.is_meta for parameter in base.parameters()):
        return "chunked", None
    if not _head_is_understood(base, head):
        return "plain", f"{type(base).__name__} changes its logits in a way that is not known here"
    return "chunked", None


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
    found = _chunked(base, head, None, hidden[0, :-1], ids[0, 1:])
    tolerance = 1e-3 if hidden.dtype in (torch.float32, torch.float64) else 0.1
    return torch.allclose(found.float(), expected, rtol=tolerance, atol=tolerance)


def _hidden_states(
    base: PreTrainedModel, mask: Tensor, input_ids: Tensor, **kwargs: Any
) -> tuple[Float[Tensor, "tokens hidden"], Int[Tensor, " tokens"], Int[Tensor, " tokens"]]:
    """Run the decoder; return the states that predict completion tokens, those tokens, and their rows."""
    hidden = base.get_decoder()(input_ids=input_ids, **kwargs).last_hidden_state
    scored = mask[:, 1:].bool()
    rows = scored.nonzero(as_tuple=True)[0]
    return hidden[:, :-1][scored], input_ids[:, 1:][scored], rows


def _chunked(base: PreTrainedModel, head: Head, chunk_size: int | None, hidden: Tensor, targets: Tensor) -> Tensor:
    module = cast(nn.Linear, base.get_output_embeddings())
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
    original: Callable[..., Any],
    completion_mask: Shaped[Tensor, "batch seq"],
    **kwargs: Any,
) -> CompletionLogps:
    hidden, targets, rows = _hidden_states(base, completion_mask, **kwargs)
    return _gather(_chunked(base, head, chunk_size, hidden, targets), rows, len(completion_mask))


def _through_module(
    base: PreTrainedModel,
    head: Head,
    chunk_size: int | None,
    original: Callable[..., Any],
    completion_mask: Shaped[Tensor, "batch seq"],
    **kwargs: Any,
) -> CompletionLogps:
    hidden, targets, rows = _hidden_states(base, completion_mask, **kwargs)
    module = base.get_output_embeddings()
    size = chunk_size or default_chunk_size(base.config.get_text_config().vocab_size, hidden.device)

    def part_logps(part: Tensor, part_targets: Tensor) -> Tensor:
        logits = module(part)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        logits = logits * head.scale
        if head.softcap is not None:
            logits = head.softcap * torch.tanh(logits / head.softcap)
        logps: Tensor = logits.log_softmax(-1)
        return logps.gather(1, part_targets[:, None]).squeeze(1)

    # At least one call on every rank, even without tokens: sharded heads gather together or hang.
    starts = range(0, max(len(targets), 1), size)
    parts = [
        checkpoint(part_logps, hidden[start : start + size], targets[start : start + size], use_reentrant=False)
        for start in starts
    ]
    return _gather(torch.cat(parts), rows, len(completion_mask))


def _plain(
    base: PreTrainedModel,
    head: Head,
    chunk_size: int | None,
    original: Callable[..., Any],
    completion_mask: Shaped[Tensor, "batch seq"],
    **kwargs: Any,
) -> CompletionLogps:
    logits = original(**kwargs).logits
    logits = logits if logits.dtype == torch.float64 else logits.float()
    scored = completion_mask.bool()
    labels = kwargs["input_ids"].masked_fill(~scored, IGNORE)
    per_token = token_logps(logits, labels)[scored[:, 1:]]
    return _gather(per_token, scored[:, 1:].nonzero(as_tuple=True)[0], len(completion_mask))


def _gather(per_token: Tensor, rows: Tensor, batch: int) -> CompletionLogps:
    counts = torch.bincount(rows, minlength=batch)
    sums = per_token.new_zeros(batch).index_add(0, rows, per_token)
    return CompletionLogps(per_token=per_token, rows=rows, sums=sums, means=sums / counts, counts=counts)
