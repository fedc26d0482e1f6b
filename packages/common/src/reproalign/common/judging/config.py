"""What a judge reads: which one it is, what it compares, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from reproalign.common.errors import UserError
from reproalign.common.judging.endpoint import EndpointConfig
from reproalign.common.options import option, output_dir, section

DTYPES = ("float32", "bfloat16", "float16")


@dataclass
class PairRMConfig:
    """PairRM, a small model trained on preferences, as the judge; see docs/judging.md."""

    model: str | None = option(None, help="llm-blender/PairRM[-hf] or a folder with its files", null="another judge")
    revision: str | None = option(None, help="of the Hub's repository", null="its default branch")
    dtype: str = option("float32", help="of its weights", choices=DTYPES)
    batch_size: int = option(16, help="comparisons at once, at most", at_least=1)
    orders: str = option(
        "both", help="in which orders two responses are shown", choices={"both": "", "one": "the first model's first"}
    )
    ties: str = option(
        "half",
        help="what a logit of exactly 0 counts",
        choices={"half": "1/2", "loss": "nothing, as in AMA's release; with orders=one"},
    )


@dataclass
class JudgeConfig:
    """Compare the responses in two AlpacaEval files, in both orders."""

    output_dir: str = output_dir()
    first: str = option(help="AlpacaEval file (JSON list of instruction, output, generator), or the folder of `sample`")
    second: str = option(help="of the same instructions in the same order")
    endpoint: EndpointConfig = section(EndpointConfig, help="no judge at all: questions are written only")
    pairrm: PairRMConfig = section(PairRMConfig, help="with pairrm.model the judge is PairRM")
    output_marker: str | None = option(
        None, help="responses are what follows its last place in an output", null="all of it"
    )
    answers: str | None = option(
        None,
        help="the judge's raw answers, in place of an endpoint: index, shown_first, answer",
        null="the judge is asked",
    )
    template: str | None = option(
        None, help="a text file with {instruction}, {answer_a}, {answer_b}", null="the package's own"
    )
    max_instructions: int | None = option(None, help="the first so many instructions", at_least=1, null="all")
    confidence: float = option(0.95, help="of the win rate's interval", above=0, below=1)


def check_pairrm(config: PairRMConfig) -> None:
    """Refuse settings that PairRM cannot be run with, and settings without a model.

    Raises:
        UserError: naming the key.
    """
    if config.ties == "loss" and config.orders == "both":
        raise UserError(
            "pairrm.ties=loss is for one order: with both, a tie would be a loss of either model; set pairrm.orders=one"
        )
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
