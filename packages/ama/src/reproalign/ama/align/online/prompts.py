"""The prompts of a run, as the policy is asked them."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from reproalign.ama.align.ppo_config import PPOConfig
from reproalign.ama.align.prompt_length import encode_prompts
from reproalign.common.data.records import Message
from reproalign.common.errors import UserError
from reproalign.common.generation.prompt_files import read_prompts
from reproalign.common.generation.samples import find


@dataclass(frozen=True)
class Prompts:
    """Prompts that are asked.

    Attributes:
        messages: of each.
        ids: what the policy is given for each.
        dropped: how many were too long.
    """

    messages: list[list[Message]]
    ids: list[list[int]]
    dropped: int


def load_prompts(config: PPOConfig, tokenizer: PreTrainedTokenizerBase, *, shown: bool) -> Prompts:
    """Read ``config.prompts`` and make what the policy is given; what is over-long is dropped or loses its beginning.

    Args:
        config: of the run.
        tokenizer: of the policy.
        shown: whether progress is.

    Raises:
        UserError: if no prompt is left.
    """
    everything = read_prompts(str(find(config.prompts, "prompts.jsonl", "prompts")))[: config.max_prompts]
    limit = config.max_prompt_length
    found = Prompts([], [], 0)
    encoded = encode_prompts(everything, tokenizer, config.layout, shown=shown)
    for prompt, ids in zip(everything, encoded, strict=True):
        if len(ids) <= limit or config.overlong == "truncate":
            found.messages.append(prompt)
            found.ids.append(ids[-limit:])
    if not found.ids:
        raise UserError(
            f"prompts={config.prompts}: none of {len(everything)} prompts has at most max_prompt_length={limit} "
            "tokens; raise it, or set overlong=truncate"
        )
    return Prompts(found.messages, found.ids, len(everything) - len(found.ids))
