"""Prompts that are short enough to be answered."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.progress import track

from reproalign.common.config import ModelConfig
from reproalign.common.data.prompts import encode_prompt, prompt_text
from reproalign.common.data.records import Message
from reproalign.common.errors import UserError
from reproalign.common.generation.samplers import asking_tokenizer


def short_prompts(
    prompts: Sequence[list[Message]], model: ModelConfig, layout: str, limit: int, *, key: str
) -> list[int]:
    """Return the indices of the prompts of at most ``limit`` tokens, special tokens and the answer's header counted.

    Args:
        prompts: turns, the last one the user's.
        model: whose tokenizer counts.
        layout: how the model is asked.
        limit: at least 1.
        key: the option that names the prompts.

    Raises:
        UserError: if all are longer, or one cannot be rendered.
    """
    tokenizer = asking_tokenizer(model, layout)
    measured = track(prompts, "measuring prompts", console=Console(stderr=True), transient=True)
    short = [
        index
        for index, prompt in enumerate(measured)
        if len(encode_prompt(tokenizer, prompt_text(tokenizer, prompt, layout), layout)) <= limit
    ]
    if not short:
        raise UserError(f"{key}: all {len(prompts)} prompts are longer than max_prompt_length={limit} tokens; raise it")
    return short
