"""One call for the log-probabilities of completions under any causal language model."""

from __future__ import annotations

from jaxtyping import Bool, Int
from torch import Tensor, nn

from reproalign.common.config.model import LogprobsConfig
from reproalign.common.logprobs.model import completion_logps_installed
from reproalign.common.logprobs.questions import CompletionLogps


def completion_logps(
    model: nn.Module,
    input_ids: Int[Tensor, "rows seq"],
    attention_mask: Int[Tensor, "rows seq"] | Bool[Tensor, "rows seq"],
    completion_mask: Int[Tensor, "rows seq"] | Bool[Tensor, "rows seq"],
    *,
    chunk_size: int | None = None,
    implementation: str = "chunked",
) -> CompletionLogps:
    """Return log π(y|x) of the completions, per token, summed and averaged, with their gradient.

    The logits of all tokens never exist at once, neither in the forward nor in the backward: beside the transformer's
    own, memory is O(chunk_size x vocabulary). The model is as it was afterwards. For many steps, or under DDP, FSDP or
    DeepSpeed, install the computation once instead, by ``install_completion_logps``.

    Args:
        model: a causal language model of ``transformers``, or one wrapped by PEFT; on the device of the inputs.
        input_ids: prompts and completions.
        attention_mask: 0 on padding.
        completion_mask: which tokens are scored, each given all tokens before it.
        chunk_size: positions whose logits exist at once; None: by the vocabulary and the kind of device.
        implementation: ``chunked``, or ``plain`` for full logits.

    Returns:
        ``sums`` and ``means`` (rows,), ``counts`` of tokens, and ``per_token`` with the ``rows`` that they belong to;
        in nats, float32 or better.

    Raises:
        ValueError: for inputs of different shapes, or a first token that is to be scored: nothing stands before it.
        UserError: for a chunk size below 1 or an unknown implementation.
    """
    shapes = {tuple(tensor.shape) for tensor in (input_ids, attention_mask, completion_mask)}
    if len(shapes) > 1 or input_ids.ndim != 2:
        raise ValueError(f"input_ids, attention_mask and completion_mask are (rows, seq), got {sorted(shapes)}")
    if bool(completion_mask[:, 0].any()):
        raise ValueError("completion_mask scores a first token, before which nothing stands; prepend a BOS token")
    with completion_logps_installed(model, LogprobsConfig(implementation=implementation, chunk_size=chunk_size)):
        found: CompletionLogps = model(
            input_ids=input_ids, attention_mask=attention_mask, completion_mask=completion_mask, use_cache=False
        )
    return found
