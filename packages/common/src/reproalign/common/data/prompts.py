"""What a model that is asked is given: the prompt as text, and as token ids."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from reproalign.common.data.records import Message
from reproalign.common.data.templates import TURN_MARKS, render, transcript, turn_header
from reproalign.common.data.tokenize import Encoder, begins_with_bos


def prompt_text(tokenizer: PreTrainedTokenizerBase, prompt: list[Message], layout: str) -> str:
    r"""Render a prompt with the header of the answer, ``"\n\nAssistant:"`` or ``"###Assistant:"`` in a transcript.

    Raises:
        UserError: for a turn in a transcript that is neither the user's nor the assistant's.
    """
    if layout == "chat":
        return render(tokenizer, prompt, generation=True)
    return transcript(prompt, layout) + turn_header("assistant", layout)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: str, layout: str) -> list[int]:
    """Return the ids of a rendered prompt; a chat template has put BOS into the text itself where it belongs."""
    ids = Encoder(tokenizer)(text)
    bos = tokenizer.bos_token_id
    return [int(bos), *ids] if layout in TURN_MARKS and begins_with_bos(tokenizer) else ids  # type: ignore[arg-type]
