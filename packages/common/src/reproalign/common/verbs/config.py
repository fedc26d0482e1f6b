"""Options of the ready-made verbs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from reproalign.common.config import BaseRunConfig, LaunchConfig, ModelConfig, RewardModelConfig, TextConfig


@dataclass
class SampleConfig:
    """``sample``: several responses of a language model to each prompt."""

    output_dir: str = MISSING
    seed: int = 42
    model: ModelConfig = field(default_factory=ModelConfig)
    prompts: str = MISSING  # rows with `prompt` (text or messages) or `instruction`, or `chosen` (a transcript)
    max_prompts: int | None = None
    layout: str = "chat"  # how the model is asked: chat (template) | transcript (\n\nHuman: …) | lmflow (###Human: …)
    system: str | None = None  # of a turn before every prompt that has none; layout=chat
    one_turn: bool = False  # a dialogue becomes one user turn, its marks deleted (AMA's release); layout=chat
    n: int = 4  # responses per prompt
    max_prompt_length: int = 512  # tokens; a longer prompt loses its beginning
    max_new_tokens: int = 256
    min_new_tokens: int | None = None  # set: each batch draws its limit from min_new_tokens to max_new_tokens - 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # so many of the likeliest tokens are drawn from; 0: all
    clean: str = "stop"  # stop: a response ends where the layout's next turn begins | lmflow: RAFT's cleaning | none
    batch_size: int = 8  # responses generated at once; vLLM batches by itself
    backend: str = "auto"  # auto (vllm where it is installed and there is a GPU) | transformers | vllm
    launch: LaunchConfig = field(default_factory=LaunchConfig)  # ddp: each process takes its share of the prompts


@dataclass
class ScoreConfig:
    """``score``: rewards of sampled responses."""

    output_dir: str = MISSING
    seed: int = 42
    responses: str = MISSING  # file or folder of the verb `sample`: prompt and responses
    model: RewardModelConfig = field(default_factory=RewardModelConfig)
    variant: str | None = None  # of reading a text: paper | released (MORE's); null: as trained
    text: TextConfig = field(default_factory=TextConfig)
    batch_size: int = 16  # texts per forward


@dataclass
class SelectConfig:
    """``select``: of the scored responses to a prompt the best, or a preference pair."""

    output_dir: str = MISSING
    seed: int = 42
    scored: str = MISSING  # file or folder of the verb `score`: prompt, responses, scores
    n: int | None = None  # of the first n responses; null: of all
    keep: str = (
        "best"  # best (for SFT) | pairs (best and worst, for preference optimisation) | all (with their rewards)
    )
    discard: str = "none"  # none | lmflow: responses with a '#' or of fewer than 4 characters are discarded
    discard_reward: float | None = None  # what a discarded response counts; null: it takes no part
    min_reward: float | None = None  # drop a prompt whose best response counts less; null: none for that


@dataclass
class AlignConfig(BaseRunConfig):
    """``align``: fine-tune a language model on the selected responses (rejection-sampling alignment)."""

    selected: str = MISSING  # file or folder of the verb `select`, or rows with `chosen` (a transcript)
    eval_fraction: float = 0.0  # hold out this share for the loss and the perplexity
    max_length: int = 768  # tokens of prompt and response
    layout: str = "chat"  # chat | transcript | lmflow
    response_separator: str = "space"  # space | none; transcript, lmflow: between "Assistant:" and the response
    loss_mean: str = "tokens"  # of a step's tokens | examples (MORE's release): one row per device at a time


@dataclass
class PerplexityConfig:
    """``perplexity``: of given answers to given prompts under a language model."""

    output_dir: str = MISSING
    model: ModelConfig = field(default_factory=ModelConfig)
    files: list[str] = MISSING  # rows with `prompt` and `answer` (texts), or `chosen` (a transcript)
    answer: str = "reply"  # of a transcript: reply, all of it | last_paragraph (MORE's published test files)
    max_rows: int | None = None  # of each file
    max_length: int = 512  # tokens; a longer text loses its beginning
    gate: float = 10_000.0  # an answer of this perplexity or a higher one is an outlier
    batch_size: int = 8  # answers per forward
    launch: LaunchConfig = field(default_factory=LaunchConfig)  # ddp: each process takes its share of the batches


@dataclass
class RaftConfig:
    """``raft``: sample, score, select and align, each as a run of its own below this one, iteration by iteration."""

    output_dir: str = MISSING
    seed: int = 42  # of the first iteration; the next ones count on from it
    iterations: int = 1  # at least 1; each begins with the model of the one before
    prompts: str = MISSING  # rows with `prompt` (text or messages) or `instruction`, or `chosen` (a transcript)
    prompts_per_iteration: int | None = None  # the next so many, from the front again after the last; null: all of them
    model: ModelConfig = field(default_factory=ModelConfig)  # the policy
    reward: str = MISSING  # the reward model: a Hub id or the model folder of a run
    sample: dict[str, Any] = field(default_factory=dict)  # any key of `sample` that raft does not set, e.g. sample.n=8
    score: dict[str, Any] = field(default_factory=dict)  # likewise of `score`, e.g. score.batch_size=32
    select: dict[str, Any] = field(default_factory=dict)  # likewise of `select`
    align: dict[str, Any] = field(default_factory=dict)  # likewise of `align`, e.g. align.trainer.learning_rate=1e-5
