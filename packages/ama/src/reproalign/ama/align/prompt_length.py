"""Prompts as a policy is asked them, and those that are short enough."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from reproalign.common.config.model import LoadedModelConfig
from reproalign.common.console import track
from reproalign.common.data.records import Message
from reproalign.common.errors import UserError
from reproalign.common.generation.asking import asking_tokenizer
from reproalign.common.text.prompts import encode_prompt, prompt_text


def encode_prompts(
    prompts: Sequence[list[Message]], tokenizer: PreTrainedTokenizerBase, layout: str, *, shown: bool = True
) -> list[list[int]]:
    """Return the token ids that a policy is given for each prompt, special tokens and the answer's header included.

    Args:
        prompts: turns, the last one the user's.
        tokenizer: of the policy.
        layout: how the policy is asked.
        shown: whether progress is.

    Raises:
        UserError: if a prompt cannot be rendered.
    """
    return [
        encode_prompt(tokenizer, prompt_text(tokenizer, prompt, layout), layout)
        for prompt in track(prompts, "measuring prompts", shown=shown)
    ]


def short_prompts(
    prompts: Sequence[list[Message]], model: LoadedModelConfig, layout: str, limit: int, *, key: str
) -> list[int]:
    """Return the indices of the prompts of at most ``limit`` tokens, counted as :func:`encode_prompts` gives them.

    Args:
        prompts: turns, the last one the user's.
        model: whose tokenizer counts.
        layout: how the model is asked.
        limit: at least 1.
        key: the option that names the prompts.

    Raises:
        UserError: if all are longer, or one cannot be rendered.
    """
    encoded = encode_prompts(prompts, asking_tokenizer(model, layout), layout)
    short = [index for index, ids in enumerate(encoded) if len(ids) <= limit]
    if not short:
        raise UserError(f"{key}: all {len(prompts)} prompts are longer than max_prompt_length={limit} tokens; raise it")
    return short
