"""Options of ``ama evaluate`` (without ``suite=``) and ``ama frontier``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reproalign.ama.average.config import TENSORS
from reproalign.common.config.launch import LaunchConfig
from reproalign.common.config.model import DTYPES, LoadedModelConfig, LogprobsConfig
from reproalign.common.config.text import LAYOUTS, TextConfig
from reproalign.common.options import option, output_dir, section, seed, variant
from reproalign.common.options.shared import BACKENDS


@dataclass
class RewardOptions:
    """How the reward model of ``reward=`` is held and reads a text."""

    revision: str | None = option(None, help="of a Hub id", null="its default branch")
    dtype: str = option("float32", help="of its weights", choices=DTYPES)
    batch_size: int = option(16, help="texts per forward", at_least=1)
    text: TextConfig = section(TextConfig, help="null: as it was trained (its reward.json)")


@dataclass
class EvaluateConfig:
    """``evaluate``: mean reward of responses to held-out prompts, perplexity of texts, KL to a reference."""

    output_dir: str = output_dir()
    seed: int = seed(
        help="seed of the responses and of the bootstrap; the same seed draws the same noise for every model"
    )
    variant: str = variant(
        help="paper: 196 new tokens; released: 127 or 128, responses cut at '###Human', cleaned, marked"
    )
    model: LoadedModelConfig = section(LoadedModelConfig, help="the model that is evaluated")
    prompts: str | None = option(None, help="held-out prompts, one row each", null="nothing is sampled")
    max_prompts: int | None = option(None, help="the first so many", at_least=1, null="all")
    layout: str = option("chat", help="how the model is asked", choices=LAYOUTS)
    n: int = option(1, help="responses per prompt", at_least=1)
    max_prompt_length: int | None = option(
        512, help="a longer prompt loses its beginning", unit="tokens", at_least=1, null="any length"
    )
    max_new_tokens: int | None = option(
        None, help="of a response", unit="tokens", at_least=1, null="196; released: 127 or 128, drawn for each prompt"
    )
    temperature: float = option(1.0, help="sampling temperature; 0 takes the likeliest token", at_least=0)
    top_p: float = option(1.0, help="mass of the likeliest tokens that are drawn from", above=0, at_most=1)
    batch_size: int = option(8, help="responses generated at once; changes no response but by rounding", at_least=1)
    backend: str = option("transformers", help="what generates", choices=BACKENDS)
    reward: str | None = option(None, help="reward model: a folder or Hub id", null="rewards are not measured")
    scoring: RewardOptions = section(RewardOptions)
    texts: list[str] = option([], help="files of rows with `text` or `messages`, for the perplexity")
    max_texts: int | None = option(None, help="the first so many rows of each file", at_least=1, null="all")
    text_length: int = option(
        1024, help="of a window of text; a longer text is several windows", unit="tokens", at_least=2
    )
    reference: str | None = option(
        None,
        help="π_0, e.g. the model before alignment: KL of the model to it on its own responses",
        null="no KL is measured",
    )
    loss_batch_size: int = option(4, help="rows per forward for perplexity and KL", at_least=1)
    confidence: float = option(0.95, help="of the bootstrap intervals over prompts", above=0, below=1)
    resamples: int = option(2000, help="of the bootstrap", at_least=100)
    logprobs: LogprobsConfig = section(LogprobsConfig, help="of perplexity and KL")
    launch: LaunchConfig = section(LaunchConfig, help="single, or ddp: prompts and texts are shared")


@dataclass
class PartSweep:
    """One part averaged at a time, the others left as in the post model."""

    parts: list[str] = option([], help="of the level's parts, e.g. [input,middle,output]; []: no sweep")
    level: str = option(
        "paper3", help="where the parts end: paper3 (layers 1-8, 9-17, 18-26) | block3 (the release) | 7#16 | …"
    )
    alphas: list[float] | None = option(None, help="ratios of that part", at_least=0, at_most=1, null="the frontier's")


@dataclass
class PatternSweep:
    """Hand-made patterns: the base ratio plus an offset for each part."""

    offsets: list[Any] = option([], help="e.g. [[0,-0.1,-0.1],[0,0,-0.1]]: one for each part; []: no sweep")
    level: str = option("block3", help="the parts that the offsets are of")
    alphas: list[float] | None = option(
        None,
        help="base ratios; those that leave [0, 1] with an offset are left out",
        at_least=0,
        at_most=1,
        null="the frontier's",
    )


@dataclass
class LearnedSweep:
    """Learned ratios: each a child ``adapt`` at a mean ratio, then averaged and evaluated."""

    levels: list[str] = option([], help="e.g. [block3,block6,block9]; []: no sweep")
    rows: dict[str, str] = option({}, help="for each post model the folder or file that is learned from")
    alphas: list[float] | None = option(
        None, help="mean ratios, 0 and 1 being those of ma", at_least=0, at_most=1, null="the frontier's"
    )
    adapt: dict[str, Any] = option({}, help="any key of `adapt` that frontier does not set: solver, …")


@dataclass
class JudgeOptions:
    """Win rates in place of rewards: responses compared with others to the same prompts."""

    against: str | None = option(
        None, help="AlpacaEval file of answers to the same prompts", null="the responses of pre"
    )
    judge: dict[str, Any] = option({}, help="keys of `judge`, e.g. {pairrm: {model: llm-blender/PairRM}}")


@dataclass
class FrontierConfig:
    """``frontier``: sweeps and trained baselines as points of reward against tasks, each a chain of child runs."""

    output_dir: str = output_dir()
    seed: int = seed(help="seed of every child")
    variant: str = variant(help="released: of every child that knows the two")
    model: LoadedModelConfig = section(LoadedModelConfig, help="how models are held; model.name stays unset")
    pre: str = option(help="θ_0, the model before alignment: folder, Hub id or adapter")
    post: dict[str, str] = option({}, help="algorithm -> θ, e.g. {rsf: runs/raft/10-train/model}")
    tensors: str = option("linear_head_post", help="which tensors every average averages", choices=TENSORS)
    head: str | None = option(
        None,
        help="of every average",
        choices={"base": "α", "post": ""},
        null="base; lblock3: its own ratio; of one part: post",
    )
    alpha_on: str = option("pre", help="what the ratios of these options multiply", choices=("pre", "post"))
    alphas: list[float] = option(
        [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0], help="ratios of the averages", at_least=0, at_most=1
    )
    ma: bool = option(True, help="average all parts at each of the ratios")
    parts: PartSweep = section(PartSweep)
    patterns: PatternSweep = section(PatternSweep)
    hma: LearnedSweep = section(LearnedSweep, help="on D_θ: rows are a run of `collect`")
    adamerging: LearnedSweep = section(LearnedSweep, help="on labelled answers of a task")
    graft: list[float] = option([], help="shares of all entries that are θ's, e.g. [0.05,0.1]", above=0, at_most=1)
    models: dict[str, Any] = option({}, help="others: name -> {model, algorithm, method, parameter, value}")
    average: dict[str, Any] = option({}, help="any key of `average` that frontier does not set: allow, …")
    evaluate: dict[str, Any] = option({}, help="any key of `evaluate`: prompts, reward, texts, n, …")
    evaluate_on: str | None = option(
        None, help="a suite of benchmarks to evaluate on too: ama, or any that `evaluate suite=` knows", null="none"
    )
    benchmarks: dict[str, Any] = option({}, help="keys of that verb, e.g. benchmarks.suite.limit=100")
    x: str = option(
        "reward", help="what stands across", choices={"reward": "mean, of evaluate.reward", "win_rate": "of the judge"}
    )
    win_rate: JudgeOptions = section(JudgeOptions)
    noise_floor: bool = option(True, help="evaluate pre a second time, with the next seed")
    published: bool = option(False, help="draw the paper's series beside ours")
    confidence: float = option(0.95, help="of the bootstrap intervals", above=0, below=1)
    resamples: int = option(1000, help="of the bootstrap", at_least=100)
    keep_models: bool = option(False, help="keep the averaged models; otherwise each is removed once it was evaluated")
    at_once: int | None = option(
        None, help="points worked on at a time", at_least=1, null="as many as the GPUs hold, and one without GPUs"
    )
