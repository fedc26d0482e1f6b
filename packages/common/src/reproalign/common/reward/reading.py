r"""From a dialogue to what a reward model reads: text in one of three layouts, then token ids with special tokens.

``transcript`` is the layout ``\n\nHuman: …\n\nAssistant: …``; ``lmflow`` is ``###Human: …###Assistant: …``; ``chat``
is the tokenizer's chat template.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from transformers import PreTrainedTokenizerBase

from reproalign.common.data.cache import fingerprint_tokenizer
from reproalign.common.data.records import RowError, Text
from reproalign.common.data.sources.hh import parse_transcript
from reproalign.common.errors import UserError
from reproalign.common.reward.released import RELEASED_IDS, SpecialIds, enclose
from reproalign.common.reward.rules import RewardRules
from reproalign.common.text.templates import TURN_MARKS, render, set_template, transcript, with_system
from reproalign.common.text.tokenize import Encoder, TokenRules, add_special_tokens, begins_with_bos


def special_ids(tokenizer: PreTrainedTokenizerBase, variant: str) -> SpecialIds:
    """Return the tokenizer's own ids, BOS only if it begins texts with it; ``released``: :data:`RELEASED_IDS`.

    Raises:
        UserError: if the tokenizer has no EOS.
    """
    if variant == "released":
        return RELEASED_IDS
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    if not isinstance(eos, int):
        raise UserError(
            f"the tokenizer of '{tokenizer.name_or_path}' has no EOS token; set one in its tokenizer_config.json"
        )
    bos = tokenizer.bos_token_id if begins_with_bos(tokenizer) else None
    return SpecialIds(bos if isinstance(bos, int) else None, eos, pad if isinstance(pad, int) else eos)


def enclose_once(ids: list[int], special: SpecialIds, encoder: Encoder) -> list[int]:
    """Put BOS and EOS around a text's ids; those that a chat template has put there already are not doubled."""
    rules = TokenRules(special.bos, special.eos, max_length=2, max_prompt_length=1)
    head, tail = add_special_tokens(rules, ids[:1], ids[1:], encoder.is_blank)
    return [token for token in (*head, *tail) if token is not None]


def truncate(ids: list[int], max_length: int, side: str) -> list[int]:
    """Cut ``ids`` to ``max_length``; what is lost on the ``left`` takes BOS along, on the ``right`` EOS."""
    return ids[-max_length:] if side == "left" else ids[:max_length]


class Reader:
    """How a reward model reads dialogues: the same in training, evaluation and scoring.

    Args:
        tokenizer: of the reward model.
        rules: its ``reward.json``.

    Raises:
        UserError: for a tokenizer without EOS or the chat template it needs.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rules: RewardRules) -> None:
        if rules.layout == "chat":
            set_template(tokenizer, None)
        self.rules, self.tokenizer = rules, tokenizer
        self.special = special_ids(tokenizer, rules.variant)
        self._encoder = Encoder(tokenizer)

    def render(self, dialogue: Text) -> str:
        """Return the dialogue as text; a transcript stands as it is in its own layout.

        Raises:
            UserError: if the layout cannot hold it.
        """
        layout, separator = self.rules.layout, self.rules.response_separator
        if isinstance(dialogue, str) and (layout, separator) == ("transcript", "space"):
            return dialogue
        try:
            turns = parse_transcript(dialogue) if isinstance(dialogue, str) else dialogue
        except RowError as error:
            raise UserError(f"layout={layout}: {error}; set layout=transcript") from error
        if layout in TURN_MARKS:
            return transcript(turns, layout, separator)
        return render(self.tokenizer, with_system(turns, self.rules.system_message, str(self.tokenizer.chat_template)))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of rendered texts, special tokens included, at full length."""
        if self.rules.special_tokens != "enclose":
            return self._encoder.with_own_tokens(texts, once=self.rules.special_tokens == "own_once")
        plain = self._encoder.batch(texts)
        if self.rules.variant == "released":
            return [enclose(ids, self.special) for ids in plain]
        return [enclose_once(ids, self.special, self._encoder) for ids in plain]

    def truncate(self, ids: list[int]) -> list[int]:
        """Cut ids to the length of the rules."""
        return truncate(ids, self.rules.max_length, self.rules.truncation_side)

    def fingerprint(self) -> list[Any]:
        """Return what the ids of a text depend on, for caches: the tokenizer and the rules."""
        return [fingerprint_tokenizer(self.tokenizer), asdict(self.rules)]

    def __call__(self, dialogues: Sequence[Text]) -> list[list[int]]:
        """Render, encode and truncate."""
        return [self.truncate(ids) for ids in self.encode([self.render(dialogue) for dialogue in dialogues])]
