"""Options of ``ama collect``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from reproalign.common.config import ModelConfig


@dataclass
class CollectConfig:
    """``ama collect``: D_θ, responses of the aligned policy with the highest rewards, and a seeded draw of them."""

    output_dir: str = MISSING
    seed: int = 42  # of the responses, and of the draw
    scored: str | None = None  # responses that are scored already: file or folder of `score`; null: sample and score
    prompts: str | None = None  # file or folder of `ama data`, or any rows with `prompt` (text or messages)
    model: ModelConfig = field(default_factory=lambda: ModelConfig(name=""))  # the aligned policy
    reward: str | None = None  # the reward model: a Hub id or the model folder of a run
    layout: str = "lmflow"  # how the policy is asked: lmflow (###Human: …) | transcript | chat (template)
    n: int = 1  # responses to a prompt, at least 1; every one of them is a candidate (the paper does not say)
    top: int = 5000  # candidates of the highest reward, at least 1
    draw: int = 2000  # so many of these, without replacement, at least 1
    filters: str = "auto"  # lmflow (clean and discard as RAFT's release) | none; auto: lmflow with layout=lmflow
    min_length: int = 1  # characters of a response, at least 1
    dedup: bool = True  # of equal dialogues keep the one of the highest reward
    exclude: str | None = None  # prompts that must not be among them, e.g. eval_prompts.jsonl of `ama data`
    sample: dict[str, Any] = field(default_factory=dict)  # any other key of `sample`, e.g. sample.max_new_tokens=196
    score: dict[str, Any] = field(default_factory=dict)  # likewise of `score`, e.g. score.batch_size=32
