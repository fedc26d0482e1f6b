"""What a judge reads: which one it is, what it compares, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from omegaconf import MISSING

from reproalign.common.errors import UserError, choose
from reproalign.common.judging.endpoint import EndpointConfig

ORDERS, TIES = ("both", "one"), ("half", "loss")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass
class PairRMConfig:
    """PairRM, a small model trained on preferences, as the judge; see docs/judging.md."""

    model: str | None = None  # llm-blender/PairRM[-hf] or a folder with its files; null: another judge
    revision: str | None = None  # of the Hub's repository
    dtype: str = "float32"  # float32 | bfloat16 | float16
    batch_size: int = 16  # comparisons at once, at most
    orders: str = "both"  # both | one: every instruction once, with the first model's response shown first
    ties: str = "half"  # half: a logit of exactly 0 counts 1/2 | loss: nothing, as in AMA's release; with orders=one


@dataclass
class JudgeConfig:
    """Compare the responses in two AlpacaEval files, in both orders."""

    output_dir: str = MISSING
    first: str = MISSING  # AlpacaEval file (JSON list of instruction, output, generator), or the folder of `sample`
    second: str = MISSING  # of the same instructions in the same order
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)  # no judge at all: questions are written only
    pairrm: PairRMConfig = field(default_factory=PairRMConfig)  # with pairrm.model the judge is PairRM
    output_marker: str | None = None  # responses are what follows its last place in an output; null: all of it
    answers: str | None = None  # the judge's raw answers, in place of an endpoint: index, shown_first, answer
    template: str | None = None  # a text file with {instruction}, {answer_a}, {answer_b}; null: the package's own
    max_instructions: int | None = None
    confidence: float = 0.95  # of the win rate's interval


def check_pairrm(config: PairRMConfig) -> None:
    """Refuse settings that PairRM cannot be run with, and settings without a model.

    Raises:
        UserError: naming the key.
    """
    choose("pairrm.dtype", config.dtype, DTYPES)
    choose("pairrm.orders", config.orders, ORDERS)
    choose("pairrm.ties", config.ties, TIES)
    if config.ties == "loss" and config.orders == "both":
        raise UserError(
            "pairrm.ties=loss is for one order: with both, a tie would be a loss of either model; set pairrm.orders=one"
        )
    if config.batch_size < 1:
        raise UserError(f"pairrm.batch_size={config.batch_size} must be at least 1")
    plain = PairRMConfig()
    given = next((name for name in vars(plain) if getattr(config, name) != getattr(plain, name)), None)
    if given and not config.model:
        raise UserError(
            f"pairrm.{given} is given without pairrm.model; set pairrm.model=llm-blender/PairRM or a folder"
        )


def check_one_judge(judges: Mapping[str, str | None]) -> None:
    """Refuse more than one judge; ``judges`` has their keys and values.

    Raises:
        UserError: naming two.
    """
    given = [key for key, value in judges.items() if value]
    if len(given) > 1:
        raise UserError(f"both {given[0]} and {given[1]} are given; the verdicts come from one of them: leave one out")
