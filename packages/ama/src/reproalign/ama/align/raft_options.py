"""What the options of ``align raft`` come to under a variant, and what its child runs are told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reproalign.ama.align.raft_config import RaftConfig
from reproalign.ama.align.reward_record import RELEASED_RULES
from reproalign.ama.cli import SFT
from reproalign.common.errors import UserError
from reproalign.common.generation.select import SelectionRules
from reproalign.common.options.words import as_word
from reproalign.common.verbs.iterations import Iterations, Step

FILTERS = ("auto", "lmflow", "none")
PAPER_LENGTH = 196  # Table 2's test sampling; of the training's the paper says nothing
RELEASED_LENGTHS = (64, 128)  # half open
ITERATIONS = Iterations(
    by="align raft",
    train=Step("train", SFT, ("rows", "model", "seed", "output_dir", "variant", "layout", "response_separator")),
    selected="rows",
    listed=True,
    owned={
        "sample": (
            "layout",
            "n",
            "temperature",
            "max_prompt_length",
            "max_new_tokens",
            "min_new_tokens",
            "clean",
            "max_prompts",
        ),
        "score": ("text.response_separator",),
        "select": ("n", "discard", "discard_reward", "min_reward"),
    },
)


@dataclass(frozen=True)
class Rules:
    """What the options come to, with nothing left open.

    Attributes:
        lengths: the shortest drawn limit of new tokens (None: no drawing), and the one that is not exceeded.
        filtered: whether responses are cleaned and discarded by LMFlow's rules.
        separator: between a prompt and its response, where they are scored and learned: ``space`` | ``none``.
        selection: what is kept.
        record: whose reward column A of the record is of.
        seed_step: between the seeds of iterations.
    """

    lengths: tuple[int | None, int]
    filtered: bool
    separator: str
    selection: SelectionRules
    record: str
    seed_step: int


def resolve(config: RaftConfig) -> Rules:
    """Check the options that are raft's own.

    Raises:
        UserError: naming the key.
    """
    released = config.variant == "released"
    filtered = config.filters == "lmflow" or (config.filters == "auto" and config.layout == "lmflow")
    if config.ranks > 1 and not released:
        raise UserError(f"ranks={config.ranks} is of variant=released; variant=paper shuffles all prompts together")
    floor = RELEASED_RULES["live"].selection.min_reward if released else None
    return Rules(
        _lengths(config, released=released),
        filtered,
        "none" if released and config.layout != "chat" else "space",
        SelectionRules(
            discard="lmflow" if filtered else "none",
            min_reward=floor if config.min_reward is None else config.min_reward,
        ),
        config.record,
        0 if released else 1,
    )


def child_words(config: RaftConfig, rules: Rules) -> dict[str, Sequence[str]]:
    """Return what the children are told beside what every loop of iterations tells them."""
    shortest, limit = rules.lengths
    separator = [as_word("response_separator", rules.separator)] if rules.separator != "space" else []
    return {
        "sample": [
            as_word("layout", config.layout),
            as_word("n", config.n),
            as_word("temperature", config.temperature),
            as_word("max_prompt_length", config.max_prompt_length),
            as_word("max_new_tokens", limit),
            *([] if shortest is None else [as_word("min_new_tokens", shortest)]),
            as_word("clean", "lmflow" if rules.filtered else "stop"),
        ],
        "score": [f"text.{word}" for word in separator],
        "select": [
            as_word("discard", rules.selection.discard),
            *([] if rules.selection.min_reward is None else [as_word("min_reward", rules.selection.min_reward)]),
        ],
        "train": [as_word("variant", config.variant), as_word("layout", config.layout), *separator],
    }


def _lengths(config: RaftConfig, *, released: bool) -> tuple[int | None, int]:
    shortest, limit = config.min_new_tokens, config.max_new_tokens
    if limit is None:
        limit = RELEASED_LENGTHS[1] if released else PAPER_LENGTH
        if released and shortest is None:
            shortest = RELEASED_LENGTHS[0]
    return shortest, limit
