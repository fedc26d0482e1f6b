"""The prompts of an iteration: which there are, and in which order they come."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from reproalign.ama.align.ppo_config import PPOConfig
from reproalign.common.data.prompts import encode_prompt, prompt_text
from reproalign.common.data.records import Message
from reproalign.common.errors import UserError
from reproalign.common.generation.sampling import read_prompts

PROMPTS = "prompts.jsonl"  # in a folder of `ama data`


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


def encode_prompts(config: PPOConfig, tokenizer: PreTrainedTokenizerBase) -> Prompts:
    """Read ``config.prompts`` and make what the policy is given; what is over-long is dropped or loses its beginning.

    Raises:
        UserError: if no prompt is left.
    """
    found = Prompts([], [], 0)
    in_folder = Path(config.prompts).expanduser() / PROMPTS
    path = str(in_folder) if in_folder.is_file() else config.prompts
    everything = read_prompts(path)[: config.max_prompts]
    limit = config.max_prompt_length
    for prompt in everything:
        ids = encode_prompt(tokenizer, prompt_text(tokenizer, prompt, config.layout), config.layout)
        if len(ids) <= limit or config.overlong == "truncate":
            found.messages.append(prompt)
            found.ids.append(ids[-limit:])
    if not found.ids:
        raise UserError(
            f"prompts={config.prompts}: none of {len(everything)} prompts has at most max_prompt_length={limit} "
            "tokens; raise it, or set overlong=truncate"
        )
    return Prompts(found.messages, found.ids, len(everything) - len(found.ids))


def iteration_prompts(count: int, size: int, iteration: int, seed: int) -> list[int]:
    """Return the indices of an iteration's prompts, which depend on nothing but these numbers.

    Iteration i takes places (i - 1)·size to i·size - 1 of an endless row of random orders of all prompts, one after
    the other.

    Args:
        count: of the prompts.
        size: of an iteration.
        iteration: from 1.
        seed: of the orders.
    """
    orders: dict[int, list[int]] = {}
    found = []
    for place in range((iteration - 1) * size, iteration * size):
        epoch, position = divmod(place, count)
        if epoch not in orders:
            orders[epoch] = random.Random(f"{seed}-{epoch}").sample(range(count), count)
        found.append(orders[epoch][position])
    return found
