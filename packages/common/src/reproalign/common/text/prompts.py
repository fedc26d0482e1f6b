"""What a model that is asked is given: the prompt as text, and as token ids."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from reproalign.common.data.records import Message
from reproalign.common.text.templates import TURN_MARKS, render, transcript, turn_header
from reproalign.common.text.tokenize import Encoder, begins_with_bos


def prompt_text(tokenizer: PreTrainedTokenizerBase, prompt: list[Message], layout: str) -> str:
    r"""Render a prompt with the header of the answer, ``"\n\nAssistant:"`` or ``"###Assistant:"`` in a transcript.

    Raises:
        UserError: for a turn in a transcript that is neither the user's nor the assistant's.
    """
    if layout == "chat":
        return render(tokenizer, prompt, generation=True)
    return transcript(prompt, layout) + turn_header("assistant", layout)


def one_user_turn(text: str, system: str | None = None) -> list[Message]:
    """Return a dialogue as one user turn: its text in LMFlow's layout with the marks of its turns deleted.

    That is how AMA's release asks a chat model for answers to HH-RLHF dialogues: ``###Human: `` and ``###Assistant:``
    are deleted wherever they stand, so that the turns run into each other; a mark without its blank stays.

    Args:
        text: of the dialogue, as :func:`prompt_text` renders it with layout ``lmflow``.
        system: of a turn before it; None: there is none.
    """
    turn: Message = {"role": "user", "content": text.replace("###Human: ", "").replace("###Assistant:", "")}
    return [turn] if system is None else [{"role": "system", "content": system}, turn]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: str, layout: str, *, own_tokens: bool = False) -> list[int]:
    """Return the ids of a rendered prompt; a chat template has put BOS into the text itself where it belongs.

    Args:
        tokenizer: of the model.
        text: as :func:`prompt_text` renders it.
        layout: of the text.
        own_tokens: add what the tokenizer adds by itself, whatever the text begins with, so that a template's BOS is
            doubled: what FastChat gives a model.
    """
    if own_tokens:
        return Encoder(tokenizer).with_own_tokens([text], once=False)[0]
    ids = Encoder(tokenizer)(text)
    bos = tokenizer.bos_token_id
    return [int(bos), *ids] if layout in TURN_MARKS and begins_with_bos(tokenizer) else ids  # type: ignore[arg-type]
