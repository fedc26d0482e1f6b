r"""From a dialogue to what a reward model reads: text in one of two layouts, then BOS, the text's tokens, EOS.

``transcript`` is the paper's layout, ``\n\nHuman: …\n\nAssistant: …``; ``chat`` the tokenizer's chat template.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from reproalign.common.data.records import RowError
from reproalign.common.data.templates import render, set_template, transcript
from reproalign.common.data.tokenize import Encoder, Rules, add_special_tokens, begins_with_bos
from reproalign.common.errors import UserError, choose
from reproalign.more.config import TextConfig
from reproalign.more.sources import Dialogue, parse

LAYOUTS = ("transcript", "chat")


@dataclass(frozen=True)
class SpecialIds:
    """Ids around a text and beside it; ``bos`` None: none."""

    bos: int | None
    eos: int
    pad: int


RELEASED_IDS = SpecialIds(bos=1, eos=2, pad=3)  # Llama's, of Pythia too (ERRATA Q3)


def special_ids(tokenizer: PreTrainedTokenizerBase, variant: str) -> SpecialIds:
    """Return the tokenizer's own ids, BOS only if it begins texts with it; ``released``: :data:`RELEASED_IDS`.

    Raises:
        UserError: if the tokenizer has no EOS.
    """
    if choose("variant", variant, ["paper", "released"]) == "released":
        return RELEASED_IDS
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    if not isinstance(eos, int):
        raise UserError(
            f"the tokenizer of '{tokenizer.name_or_path}' has no EOS token; set one in its tokenizer_config.json"
        )
    bos = tokenizer.bos_token_id if begins_with_bos(tokenizer) else None
    return SpecialIds(bos if isinstance(bos, int) else None, eos, pad if isinstance(pad, int) else eos)


def enclose(ids: list[int], special: SpecialIds) -> list[int]:
    """Put BOS and EOS around a text's ids, whatever they are."""
    return [*([] if special.bos is None else [special.bos]), *ids, special.eos]


def enclose_once(ids: list[int], special: SpecialIds, encoder: Encoder) -> list[int]:
    """Put BOS and EOS around a text's ids; those that a chat template has put there already are not doubled."""
    rules = Rules(special.bos, special.eos, max_length=2, max_prompt_length=1)
    head, tail = add_special_tokens(rules, ids[:1], ids[1:], encoder.is_blank)
    return [token for token in (*head, *tail) if token is not None]


def truncate(ids: list[int], max_length: int, side: str) -> list[int]:
    """Cut ``ids`` to ``max_length``; what is lost on the ``left`` takes BOS along, on the ``right`` EOS."""
    return ids[-max_length:] if side == "left" else ids[:max_length]


class TextEncoder:
    """How a reward model reads dialogues.

    Args:
        tokenizer: of the reward model.
        config: layout (null: transcript), length (null: 512), which end is lost (null: the left one).
        variant: ``released`` puts :data:`RELEASED_IDS` around every text.

    Raises:
        UserError: for unusable settings, or a tokenizer without EOS or the chat template it needs.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: TextConfig, variant: str) -> None:
        self.layout = choose("layout", config.layout or "transcript", LAYOUTS)
        self.truncation_side = choose("truncation_side", config.truncation_side or "left", ["left", "right"])
        choose("padding_side", config.padding_side or "right", ["left", "right"])
        self.max_length = 512 if config.max_length is None else config.max_length
        if self.max_length < 3:
            raise UserError(f"max_length={self.max_length} must be at least 3: BOS, a token and EOS")
        if self.layout == "chat":
            set_template(tokenizer, None)
        self.variant = variant
        self.special = special_ids(tokenizer, variant)
        self.tokenizer, self._encoder = tokenizer, Encoder(tokenizer)

    def render(self, dialogue: Dialogue) -> str:
        """Return the dialogue as text; a transcript stands as it is in its own layout.

        Raises:
            UserError: if the layout cannot hold it.
        """
        if self.layout == "transcript":
            return dialogue if isinstance(dialogue, str) else transcript(dialogue)
        try:
            return render(self.tokenizer, parse(dialogue) if isinstance(dialogue, str) else dialogue)
        except RowError as error:
            raise UserError(f"layout=chat: {error}; set layout=transcript") from error

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of rendered texts, BOS and EOS included, at full length."""
        plain = self._encoder.batch(texts)
        if self.variant == "released":
            return [enclose(ids, self.special) for ids in plain]
        return [enclose_once(ids, self.special, self._encoder) for ids in plain]

    def truncate(self, ids: list[int]) -> list[int]:
        """Cut ids to the configured length."""
        return truncate(ids, self.max_length, self.truncation_side)

    def __call__(self, dialogues: Sequence[Dialogue]) -> list[list[int]]:
        """Render, encode and truncate."""
        return [self.truncate(ids) for ids in self.encode([self.render(dialogue) for dialogue in dialogues])]
