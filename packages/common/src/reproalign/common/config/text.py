"""How dialogues become token ids: ``text.*``, of a reward model and of a policy."""

from __future__ import annotations

from dataclasses import dataclass

from reproalign.common.options import option

LAYOUTS = {"chat": "its chat template", "transcript": "Human: … Assistant: …", "lmflow": "###Human: …###Assistant: …"}
SEPARATORS = {"space": "", "none": ""}
SYSTEM = "system turn of a dialogue that has none: auto (an empty one where the template knows them), or its text"
OVERLONG = {"truncate": "cut", "drop": "left out", "error": "the run stops"}
SPECIAL_TOKENS = {
    "dedupe": "BOS once, for tokenizers that begin with it, and one EOS",
    "released": "both always added",
}


@dataclass
class TextConfig:
    """How a dialogue becomes the token ids that a reward model reads; null: as it was trained."""

    layout: str | None = option(
        None, help="how a dialogue is written", choices=LAYOUTS, null="as trained, new: transcript"
    )
    max_length: int | None = option(
        None, help="special tokens included", unit="tokens", at_least=3, null="as trained, new: 512"
    )
    truncation_side: str | None = option(
        None, help="the end that an over-long text loses", choices=("left", "right"), null="as trained, new: left"
    )
    padding_side: str | None = option(
        None, help="where batches are filled up", choices=("right", "left"), null="as trained, new: right"
    )
    response_separator: str | None = option(
        None, help='after the last "Assistant:"', choices=SEPARATORS, null="as trained, new: space"
    )


@dataclass
class DialogueTextConfig:
    """How whole dialogues become token ids, for supervised fine-tuning; ``text.*``."""

    system_message: str | None = option("auto", help=SYSTEM, null="none")
    max_length: int = option(1024, help="of a dialogue", unit="tokens", at_least=2)


@dataclass
class RewardTextConfig(DialogueTextConfig):
    """How a reward model reads both dialogues of a pair; ``text.*``."""

    overlong: str = option("truncate", help="what becomes of a pair with a longer side", choices=OVERLONG)
    special_tokens: str = option("dedupe", help="BOS and EOS", choices=SPECIAL_TOKENS)


@dataclass
class PairTextConfig(RewardTextConfig):
    """How prompts and responses become token ids, for a policy; ``text.*``."""

    max_prompt_length: int = option(512, help="of a prompt that does not fit", unit="tokens", at_least=1)
    truncation: str = option("keep_end", help="which end of such a prompt survives", choices=["keep_end", "keep_start"])
    boundary: str = option(
        "exact",
        help="between prompt and response",
        choices={"exact": "no token crosses it", "released": "TRL 0.7.7's rule"},
    )
