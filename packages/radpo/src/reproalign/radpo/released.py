"""What the published command makes of texts: prompts cut in place, responses decoded again, one tokenised whole.

The release keeps one conversation per prompt, shortens it in place while it tokenises, and meets it again: with the
other response of a pair, with other pairs of the prompt, in later epochs and evaluations (ERRATA Q7). So what becomes
of a row depends on the rows before it, and :class:`Conversations` goes through them in their order.
"""

from __future__ import annotations

from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from reproalign.common.data.records import Message, assistant
from reproalign.common.text.templates import render
from reproalign.common.text.tokenize import Encoder, Ids
from reproalign.radpo.objectives.base import RadpoObjective


class Element(NamedTuple):
    """One response to a prompt, tokenised.

    Attributes:
        turns: of the prompt, as they are rendered.
        response: cut and decoded.
        text: the whole dialogue.
        ids: of ``text``.
        prompt_length: ids that are not scored: as many as the prompt has with the header of the answer.
    """

    turns: list[Message]
    response: str
    text: str
    ids: Ids
    prompt_length: int


class Conversations:
    """The conversations of a split, each of which :meth:`element` may change for good.

    Args:
        tokenizer: with a chat template.
        max_length: tokens of a dialogue, as the release counts them.
        max_prompt_length: tokens of its prompt.
        clean_up_spaces: decode as transformers 4.44 does by default, which takes spaces away before punctuation and
            contractions (ERRATA Q20).
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int, max_prompt_length: int, *, clean_up_spaces: bool
    ) -> None:
        self.encode = Encoder(tokenizer)
        self.max_length, self.max_prompt_length, self.clean_up_spaces = max_length, max_prompt_length, clean_up_spaces
        self.turns: dict[str, list[Message]] = {}
        self._lengths: dict[tuple[str, str], int] = {}

    def element(self, key: str, prompt: list[Message], response: str) -> Element:
        """Tokenise ``response`` after the conversation of ``key``, which is ``prompt`` when it is first met.

        The first turn that passes ``max_prompt_length``, counted with the template around each turn, loses from its end
        as many tokens as are too many, and the turns after it are left out. The cut stays, so the next call finds that
        turn fitting, goes one turn further and empties the one that now passes. Of the response remain as many tokens
        as the counted prompt leaves of ``max_length``.
        """
        conversation = self.turns.setdefault(key, [{**turn} for turn in prompt])
        kept, used = self._cut(conversation)
        text = self._decode(self._plain(response)[: self.max_length - used])
        tokenizer = self.encode.tokenizer
        head = self.encode(render(tokenizer, kept, generation=True))
        if head and head[-1] in (tokenizer.eos_token_id, tokenizer.pad_token_id):
            head.pop()
        whole = render(tokenizer, [*kept, assistant(text)])
        ids = self.encode(whole)
        return Element([{**turn} for turn in kept], text, whole, ids, min(len(head), len(ids)))

    def _cut(self, conversation: list[Message]) -> tuple[list[Message], int]:
        used = 0
        for place, turn in enumerate(conversation):
            templated = self._templated(turn)
            if used + templated > self.max_prompt_length:
                ids = self._plain(turn["content"])
                turn["content"] = self._decode(ids[: self.max_prompt_length - (used + templated)])
                return conversation[: place + 1], self.max_prompt_length
            used += templated
        return conversation, used

    def _templated(self, turn: Message) -> int:
        key = (turn["role"], turn["content"])
        if key not in self._lengths:
            self._lengths[key] = len(self.encode(render(self.encode.tokenizer, [turn], generation=True)))
        return self._lengths[key]

    def _plain(self, text: str) -> Ids:
        tokenizer = self.encode.tokenizer
        special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        return [token for token in self.encode(text) if token not in special]

    def _decode(self, ids: Ids) -> str:
        tokenizer = self.encode.tokenizer
        text = str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
        return str(tokenizer.clean_up_tokenization(text)) if self.clean_up_spaces else text


def loss_scale(objective: RadpoObjective, rows: int, here: int, accumulation: int | None) -> float:
    """Return what makes means over micro-batches the release's gradient: Σ losses of a step / accumulation.

    The release adds up the losses of a micro-batch, unless its loop takes means as PPO's does, and divides by its
    accumulation (ERRATA Q4, Q18); the Trainer takes means and divides by the micro-batches of a step here.

    Args:
        objective: says which loop it is.
        rows: of a micro-batch.
        here: micro-batches of a step, of all processes.
        accumulation: the release's; null: ``here``.
    """
    return here / (accumulation or here) * (rows if objective.accumulates else 1.0)
