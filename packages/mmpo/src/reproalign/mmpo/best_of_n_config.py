"""Options of ``mmpo best-of-n``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reproalign.common.config.model import LoadedModelConfig
from reproalign.common.options import option, output_dir, section, seed
from reproalign.common.options.shared import BACKENDS
from reproalign.common.verbs.mt_bench_config import AnsweringModelConfig


@dataclass
class BestOfNConfig:
    """``mmpo best-of-n``: sample candidates from a policy, score them with a reward model, keep the best."""

    output_dir: str = output_dir()
    seed: int = seed(help="questions: of candidate 0, a candidate's is this plus its index (FastChat: 0)")
    prompts: str | None = option(
        None,
        help="JSON lines with `prompt` (text or messages), or the rows of a data source: one turn",
        null="questions is given instead",
    )
    questions: str | None = option(
        None,
        help="in place of prompts: FastChat's question file, two turns, temperature by category",
        null="prompts is given instead",
    )
    candidates: str | None = option(
        None,
        help="of the questions, in place of sampling: FastChat's answer file with n choices",
        null="they are sampled",
    )
    policy: AnsweringModelConfig = section(AnsweringModelConfig)
    reward: LoadedModelConfig = section(LoadedModelConfig, dtype="float32")
    gold: str | None = option(None, help="a second reward model that judges the selection", null="none")
    rendering: str = option(
        "training",
        help="how a dialogue is written",
        choices={"training": "as policies and reward models were trained", "released": "as MMPO's authors did"},
    )
    n: Any = option(
        16,
        help="candidates per prompt; or several numbers, as [16,64,256]: each the first n of one list",
        types=(int, list),
        at_least=1,
    )
    max_prompts: int | None = option(None, help="the first so many prompts", at_least=1, null="all")
    max_new_tokens: int = option(256, help="of each turn", unit="tokens", at_least=1)
    temperature: float | None = option(None, help="of prompts", above=0, null="1")
    temperatures: dict[str, float] = option({}, help="of questions, by category; others: FastChat's", at_least=0)
    top_p: float = option(
        1.0, help="nucleus sampling: the likeliest tokens of this joint probability are drawn from", above=0, at_most=1
    )
    top_k: int = option(
        0, help="so many of the likeliest tokens are drawn from; 0: all (FastChat's own runs: 50)", at_least=0
    )
    batch_size: int = option(8, help="candidates generated or scored at once", at_least=1)
    backend: str = option("auto", help="what generates", choices=BACKENDS)
    max_length: int | None = option(
        None,
        help="tokens of a scored dialogue",
        unit="tokens",
        at_least=1,
        null="as the reward model was trained, else 2048",
    )
