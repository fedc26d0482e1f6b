"""How responses are drawn: the options of sampling, which each verb declares, together."""

from __future__ import annotations

import random
from dataclasses import dataclass

from reproalign.common.errors import UserError


@dataclass(frozen=True)
class SamplingRules:
    """How responses are drawn.

    Attributes:
        n: responses per prompt.
        max_new_tokens: of a response.
        min_new_tokens: None: every response may have ``max_new_tokens``. Otherwise each batch draws its limit
            uniformly from min_new_tokens, …, max_new_tokens - 1, as RAFT's release does, whose responses are cut off
            there; it depends on the batch's seed alone.
        temperature: 0 takes the likeliest token.
        top_p: mass of the likeliest tokens that are drawn from.
        top_k: number of the likeliest tokens that are drawn from; 0: all.
        batch_size: responses generated at once.
        max_prompt_length: tokens of a prompt; longer ones lose their beginning. None: any.
        stop: strings that end a response, beside the model's own end. None: what the layout puts after one.
        clean: ``stop``: a response is what comes before these strings; ``lmflow``: it is generated to its end or its
            limit, and then cleaned by :func:`~reproalign.common.generation.filters.clean_lmflow`; ``none``: it is left
            as it was generated, with the space around it.
        layout: how the model is asked: by its ``chat`` template, in a ``transcript`` of Human and Assistant, or in
            ``lmflow``'s, with ``###`` before each speaker and no blank lines.
        system_message: layout ``chat``: of a prompt that has no system turn
            (:func:`~reproalign.common.text.templates.with_system`): None, ``auto`` or text.
        special_tokens: ``template``: those that the layout has; ``own``: also those that the tokenizer adds by itself,
            which doubles a BOS of the template.
        response_prefix: text that every response begins with: given to the model, and no part of what is returned.
        own_noise: draw every response with noise of its own (:mod:`reproalign.common.generation.noise`): it then
            depends on the seed and the place of its prompt, but by rounding not on what else is in its batch, and all
            models are given the same noise. A length is then drawn for each response instead of each batch.
    """

    n: int = 1
    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    batch_size: int = 8
    max_prompt_length: int | None = None
    stop: tuple[str, ...] | None = ()
    layout: str = "chat"
    response_prefix: str = ""
    clean: str = "stop"
    min_new_tokens: int | None = None
    top_k: int = 0
    own_noise: bool = False
    system_message: str | None = None
    special_tokens: str = "template"

    def check(self) -> None:
        """Refuse options that do not go together.

        Raises:
            UserError: naming the key, its value and what is allowed.
        """
        if self.min_new_tokens is not None and self.min_new_tokens >= self.max_new_tokens:
            raise UserError(
                f"min_new_tokens={self.min_new_tokens} must be below max_new_tokens={self.max_new_tokens}; null draws "
                "no lengths"
            )
        if self.own_noise and not self.temperature > 0:
            raise UserError(f"temperature={self.temperature} must be above 0 for responses that are drawn")

    def limit(self, seed: int) -> int:
        """Return how many tokens a response of the batch with this seed may have."""
        if self.min_new_tokens is None:
            return self.max_new_tokens
        return random.Random(seed).randrange(self.min_new_tokens, self.max_new_tokens)
