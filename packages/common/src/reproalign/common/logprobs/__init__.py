"""Log-probabilities of completions under a causal language model.

:func:`completion_logps` is one call for any of them. ``plain`` is the readable oracle, ``chunked`` the computation that
never holds the logits of all tokens, and ``model`` fits either to a model so that it works under DDP, FSDP and
DeepSpeed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reproalign.common.lazy import exports

if TYPE_CHECKING:
    from reproalign.common.logprobs.chunked import chunked_token_logps
    from reproalign.common.logprobs.completions import completion_logps
    from reproalign.common.logprobs.head_states import HeadStates
    from reproalign.common.logprobs.model import install_completion_logps, uninstall_completion_logps
    from reproalign.common.logprobs.quantiles import linear_quantile, upper_tail
    from reproalign.common.logprobs.questions import CompletionLogps
    from reproalign.common.logprobs.statistics import chunked_token_statistics

__all__ = [
    "CompletionLogps",
    "HeadStates",
    "chunked_token_logps",
    "chunked_token_statistics",
    "completion_logps",
    "install_completion_logps",
    "linear_quantile",
    "uninstall_completion_logps",
    "upper_tail",
]

__getattr__ = exports(
    __name__,
    {
        "chunked": "chunked_token_logps",
        "completions": "completion_logps",
        "head_states": "HeadStates",
        "model": "install_completion_logps uninstall_completion_logps",
        "quantiles": "linear_quantile upper_tail",
        "questions": "CompletionLogps",
        "statistics": "chunked_token_statistics",
    },
)
