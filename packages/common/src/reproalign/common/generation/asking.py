"""How a model is asked and how its answer ends: token ids of a prompt, stop strings, what is left of a text."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from reproalign.common.config.model import LoadedModelConfig
from reproalign.common.data.records import Message
from reproalign.common.errors import UserError
from reproalign.common.generation.filters import clean_lmflow
from reproalign.common.generation.rules import SamplingRules
from reproalign.common.models.load import load_tokenizer
from reproalign.common.text.prompts import encode_prompt, prompt_text
from reproalign.common.text.templates import SPEAKERS, TURN_MARKS, check_tokenizer, render, turn_header, with_system
from reproalign.common.text.tokenize import Encoder

logger = logging.getLogger(__name__)
_PROBE = "an answer"


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: list[Message], rules: SamplingRules) -> list[int]:
    """Return what the model is given: a prompt (of an over-long one the end), and what the response begins with."""
    if rules.layout == "chat":
        prompt = with_system(prompt, rules.system_message, str(tokenizer.chat_template))
    text = prompt_text(tokenizer, prompt, rules.layout)
    ids = encode_prompt(tokenizer, text, rules.layout, own_tokens=rules.special_tokens == "own")
    limit = rules.max_prompt_length
    if limit is not None and len(ids) > limit:
        logger.warning("a prompt of %d tokens loses its beginning (max_prompt_length=%d)", len(ids), limit)
        ids = ids[-limit:]
    return [*ids, *(Encoder(tokenizer).continuation(rules.response_prefix) if rules.response_prefix else [])]


def stops(tokenizer: PreTrainedTokenizerBase, rules: SamplingRules) -> tuple[str, ...]:
    """Return the strings at which generation ends: none where the text is cleaned afterwards."""
    if rules.clean != "stop":
        return ()
    return rules.stop if rules.stop is not None else turn_end(tokenizer, rules.layout)


def finish(text: str, rules: SamplingRules, stop: Sequence[str]) -> str:
    """Return the response in a generated text; an empty one if nothing is left of it."""
    if rules.clean == "none":
        return text
    return clean_lmflow(text) or "" if rules.clean == "lmflow" else cut(text, stop)


def turn_end(tokenizer: PreTrainedTokenizerBase, layout: str = "chat") -> tuple[str, ...]:
    """Return what the layout puts after an answer, if anything: models trained with it end their answers so."""
    if layout == "lmflow":
        return (f"{TURN_MARKS[layout]}{SPEAKERS['user']}",)  # without the colon, as in RAFT's own cleaning of responses
    if layout in TURN_MARKS:
        return (turn_header("user", layout),)
    dialogue = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": _PROBE}]
    end = render(tokenizer, dialogue).rpartition(_PROBE)[2].strip()
    return (end,) if end else ()


def cut(text: str, stop: Sequence[str]) -> str:
    """Return ``text`` up to the first of the strings ``stop``, without surrounding space."""
    for end in stop:
        text = text.partition(end)[0]
    return text.strip()


def asking_tokenizer(model: LoadedModelConfig, layout: str) -> PreTrainedTokenizerBase:
    """Load and check the tokenizer of ``model``; for transcripts it needs no chat template.

    Raises:
        UserError: if it has no EOS token, or no chat template where one is needed.
    """
    tokenizer = load_tokenizer(model)
    if layout in TURN_MARKS and not (model.chat_template or tokenizer.chat_template):
        if tokenizer.eos_token_id is None:
            raise UserError(f"the tokenizer of '{tokenizer.name_or_path}' has no EOS token; set model.tokenizer")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer
    check_tokenizer(tokenizer, chat_template=model.chat_template)
    return tokenizer
