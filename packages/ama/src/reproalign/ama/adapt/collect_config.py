"""Options of ``ama collect``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reproalign.ama.align.raft_config import FILTERS
from reproalign.common.config.model import LoadedModelConfig
from reproalign.common.config.text import LAYOUTS
from reproalign.common.options import option, output_dir, section, seed


@dataclass
class CollectConfig:
    """``ama collect``: D_θ, responses of the aligned policy with the highest rewards, and a seeded draw of them."""

    output_dir: str = output_dir()
    seed: int = seed(help="seed of the responses, and of the draw")
    scored: str | None = option(
        None, help="responses that are scored already: file or folder of `score`", null="sample and score"
    )
    prompts: str | None = option(
        None,
        help="file or folder of `ama data`, or any rows with `prompt` (text or messages)",
        null="none, with scored",
    )
    model: LoadedModelConfig = section(LoadedModelConfig, name="", help="the aligned policy")
    reward: str | None = option(
        None, help="the reward model: a Hub id or the model folder of a run", null="none, with scored"
    )
    layout: str = option("lmflow", help="how the policy is asked", choices=LAYOUTS)
    n: int = option(
        1, help="responses to a prompt; every one of them is a candidate (the paper does not say)", at_least=1
    )
    top: int = option(5000, help="candidates of the highest reward", at_least=1)
    draw: int = option(2000, help="so many of these, without replacement", at_least=1)
    filters: str = option("auto", **FILTERS)
    min_length: int = option(1, help="of a response", unit="characters", at_least=1)
    dedup: bool = option(True, help="of equal dialogues keep the one of the highest reward")
    exclude: str | None = option(
        None, help="prompts that must not be among them, e.g. eval_prompts.jsonl of `ama data`", null="none"
    )
    sample: dict[str, Any] = option({}, help="any other key of `sample`, e.g. sample.max_new_tokens=196")
    score: dict[str, Any] = option({}, help="likewise of `score`, e.g. score.batch_size=32")
