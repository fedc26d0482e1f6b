"""Options of ``ama evaluate`` (without ``suite=``) and ``ama frontier``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from reproalign.common.config import LaunchConfig, LogprobsConfig, ModelConfig, TextConfig


@dataclass
class RewardOptions:
    """How the reward model of ``reward=`` is held and reads a text."""

    revision: str | None = None  # of a Hub id
    dtype: str = "float32"  # of its weights: float32 | bfloat16 | float16 | auto
    batch_size: int = 16  # texts per forward, at least 1
    text: TextConfig = field(default_factory=TextConfig)  # null: as it was trained (its reward.json)


@dataclass
class EvaluateConfig:
    """``evaluate``: mean reward of responses to held-out prompts, perplexity of texts, KL to a reference."""

    output_dir: str = MISSING
    seed: int = 42  # of the responses and of the bootstrap; the same seed draws the same noise for every model
    variant: str = "paper"  # paper: 196 new tokens | released: 127 or 128; responses cut at '###Human', cleaned, marked
    model: ModelConfig = field(default_factory=ModelConfig)  # the model that is evaluated
    prompts: str | None = None  # held-out prompts, one row each; null: nothing is sampled
    max_prompts: int | None = None  # the first so many; null: all
    layout: str = "chat"  # how the model is asked: chat (its chat template) | transcript | lmflow ('###Human: …')
    n: int = 1  # responses per prompt, at least 1
    max_prompt_length: int | None = 512  # tokens; a longer prompt loses its beginning; null: any length
    max_new_tokens: int | None = None  # of a response; null: 196, released: 127 or 128, drawn for each prompt
    temperature: float = 1.0  # of sampling, from 0 (the likeliest token) on
    top_p: float = 1.0  # mass of the likeliest tokens that are drawn from, in (0, 1]
    batch_size: int = 8  # responses generated at once; changes no response but by rounding
    backend: str = "transformers"  # transformers | vllm (one process; noise of its own) | auto
    reward: str | None = None  # reward model: a folder or Hub id; null: rewards are not measured
    scoring: RewardOptions = field(default_factory=RewardOptions)
    texts: list[str] = field(default_factory=list)  # files of rows with `text` or `messages`, for the perplexity
    max_texts: int | None = None  # the first so many rows of each file; null: all
    text_length: int = 1024  # tokens of a window of text, at least 2; a longer text is several windows
    reference: str | None = None  # π_0, e.g. the model before alignment: KL of the model to it on its own responses
    loss_batch_size: int = 4  # rows per forward for perplexity and KL
    confidence: float = 0.95  # of the bootstrap intervals over prompts, in (0, 1)
    resamples: int = 2000  # of the bootstrap, at least 100
    logprobs: LogprobsConfig = field(default_factory=LogprobsConfig)  # of perplexity and KL
    launch: LaunchConfig = field(default_factory=LaunchConfig)  # single, or ddp: prompts and texts are shared


@dataclass
class PartSweep:
    """One part averaged at a time, the others left as in the post model."""

    parts: list[str] = field(default_factory=list)  # of the level's parts, e.g. [input,middle,output]; []: no sweep
    level: str = "paper3"  # where the parts end: paper3 (layers 1-8, 9-17, 18-26) | block3 (the release) | 7#16 | …
    alphas: list[float] | None = None  # ratios of that part; null: the frontier's


@dataclass
class PatternSweep:
    """Hand-made patterns: the base ratio plus an offset for each part."""

    offsets: list[Any] = field(default_factory=list)  # e.g. [[0,-0.1,-0.1],[0,0,-0.1]]: one for each part; []: no sweep
    level: str = "block3"  # the parts that the offsets are of
    alphas: list[float] | None = None  # base ratios; those that leave [0, 1] with an offset are left out


@dataclass
class LearnedSweep:
    """Learned ratios: each a child ``adapt`` at a mean ratio, then averaged and evaluated."""

    levels: list[str] = field(default_factory=list)  # e.g. [block3,block6,block9]; []: no sweep
    rows: dict[str, str] = field(default_factory=dict)  # for each post model the folder or file that is learned from
    alphas: list[float] | None = None  # mean ratios, 0 and 1 being those of ma; null: the frontier's
    adapt: dict[str, Any] = field(default_factory=dict)  # any key of `adapt` that frontier does not set: solver, …


@dataclass
class JudgeOptions:
    """Win rates in place of rewards: responses compared with others to the same prompts."""

    against: str | None = None  # AlpacaEval file of answers to the same prompts; null: the responses of pre
    judge: dict[str, Any] = field(default_factory=dict)  # keys of `judge`, e.g. {pairrm: {model: llm-blender/PairRM}}


@dataclass
class FrontierConfig:
    """``frontier``: sweeps and trained baselines as points of reward against tasks, each a chain of child runs."""

    output_dir: str = MISSING
    seed: int = 42  # of every child
    variant: str = "paper"  # paper | released: of every child that knows the two
    model: ModelConfig = field(default_factory=ModelConfig)  # how models are held; model.name stays unset
    pre: str = MISSING  # θ_0, the model before alignment: folder, Hub id or adapter
    post: dict[str, str] = field(default_factory=dict)  # algorithm -> θ, e.g. {rsf: runs/raft/10-train/model}
    tensors: str = "linear_head_post"  # which tensors every average averages: linear_head_(post|pre) | released_ma
    head: str | None = None  # of every average: base (α) | post; null: base, lblock3's own ratio, of one part post
    alpha_on: str = "pre"  # what the ratios of these options multiply: pre | post
    alphas: list[float] = field(default_factory=lambda: [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    ma: bool = True  # average all parts at each of the ratios
    parts: PartSweep = field(default_factory=PartSweep)
    patterns: PatternSweep = field(default_factory=PatternSweep)
    hma: LearnedSweep = field(default_factory=LearnedSweep)  # on D_θ: rows are a run of `collect`
    adamerging: LearnedSweep = field(default_factory=LearnedSweep)  # on labelled answers of a task
    graft: list[float] = field(default_factory=list)  # shares of all entries that are θ's, e.g. [0.05,0.1]
    models: dict[str, Any] = field(default_factory=dict)  # others: name -> {model, algorithm, method, parameter, value}
    average: dict[str, Any] = field(default_factory=dict)  # any key of `average` that frontier does not set: allow, …
    evaluate: dict[str, Any] = field(default_factory=dict)  # any key of `evaluate`: prompts, reward, texts, n, …
    evaluate_on: str | None = None  # a suite of benchmarks to evaluate on too: ama, or any that `evaluate suite=` knows
    benchmarks: dict[str, Any] = field(default_factory=dict)  # keys of that verb, e.g. benchmarks.suite.limit=100
    x: str = "reward"  # what stands across: reward (mean, of evaluate.reward) | win_rate (of the judge)
    win_rate: JudgeOptions = field(default_factory=JudgeOptions)
    noise_floor: bool = True  # evaluate pre a second time, with the next seed
    published: bool = False  # draw the paper's series beside ours
    confidence: float = 0.95  # of the bootstrap intervals, in (0, 1)
    resamples: int = 1000  # of the bootstrap, at least 100
    keep_models: bool = False  # keep the averaged models; otherwise each is removed once it was evaluated
    at_once: int | None = None  # points worked on at a time; null: as many as the GPUs hold, and one without GPUs
