"""What the options of ``align raft`` come to under a variant, and what its child runs are told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reproalign.ama.align.raft_config import RaftConfig
from reproalign.ama.cli import SFT
from reproalign.ama.rules import rules_of
from reproalign.common.errors import UserError
from reproalign.common.generation.select import SelectionRules
from reproalign.common.options.words import as_word
from reproalign.common.verbs.iterations import Iterations, IterationStep

ITERATIONS = Iterations(
    by="align raft",
    train=IterationStep(
        "train", SFT, ("rows", "model", "seed", "output_dir", "variant", "layout", "response_separator")
    ),
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
class RaftRules:
    """What the options come to, with nothing left open.

    Attributes:
        lengths: the shortest drawn limit of new tokens (None: no drawing), and the one that is not exceeded.
        filtered: whether responses are cleaned and discarded by LMFlow's rules.
        separator: between a prompt and its response, where they are scored and learned: ``space`` | ``none``.
        selection: what is kept.
        record: whose reward column A of the record is of.
        seed_step: between the seeds of iterations.
        ranks: processes that the release would have dealt the prompts to; None: they are shuffled together.
    """

    lengths: tuple[int | None, int]
    filtered: bool
    separator: str
    selection: SelectionRules
    record: str
    seed_step: int
    ranks: int | None


def resolve(config: RaftConfig) -> RaftRules:
    """Check the options that are raft's own.

    Raises:
        UserError: naming the key.
    """
    variant = rules_of(config.variant)
    filtered = config.filters == "lmflow" or (config.filters == "auto" and config.layout == "lmflow")
    if config.ranks > 1 and not variant.dealt:
        raise UserError(f"ranks={config.ranks} is of variant=released; variant=paper shuffles all prompts together")
    shortest, longest = variant.raft_lengths if config.max_new_tokens is None else (None, config.max_new_tokens)
    return RaftRules(
        (shortest if config.min_new_tokens is None else config.min_new_tokens, longest),
        filtered,
        "none" if variant.unseparated and config.layout != "chat" else "space",
        SelectionRules(
            discard="lmflow" if filtered else "none",
            min_reward=variant.min_reward if config.min_reward is None else config.min_reward,
        ),
        config.record,
        variant.seed_step,
        config.ranks if variant.dealt else None,
    )


def child_words(config: RaftConfig, rules: RaftRules) -> dict[str, Sequence[str]]:
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
