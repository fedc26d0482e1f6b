"""Options of the ready-made verbs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reproalign.common.config.launch import LaunchConfig
from reproalign.common.config.model import LoadedModelConfig, LoadedRewardModelConfig, ModelConfig
from reproalign.common.config.run import SFT, BaseRunConfig
from reproalign.common.config.text import LAYOUTS, SEPARATORS, TextConfig
from reproalign.common.options import like, option, output_dir, section, seed
from reproalign.common.options.shared import BACKENDS, VARIANTS


@dataclass
class SampleConfig:
    """``sample``: several responses of a language model to each prompt."""

    output_dir: str = output_dir()
    seed: int = seed()
    model: LoadedModelConfig = section(LoadedModelConfig)
    prompts: str = option(help="rows with `prompt` (text or messages) or `instruction`, or `chosen` (a transcript)")
    max_prompts: int | None = option(None, help="the first so many prompts", at_least=1, null="all")
    layout: str = option("chat", help="how the model is asked", choices=LAYOUTS)
    system: str | None = option(
        None, help="system turn put before every prompt that has none; layout=chat", null="none"
    )
    one_turn: bool = option(
        False, help="a dialogue becomes one user turn, its marks deleted (AMA's release); layout=chat"
    )
    n: int = option(4, help="responses per prompt", at_least=1)
    max_prompt_length: int = option(512, help="tokens; a longer prompt loses its beginning", unit="tokens", at_least=1)
    max_new_tokens: int = option(256, help="longest response", unit="tokens", at_least=1)
    min_new_tokens: int | None = option(
        None,
        help="each batch draws its limit from min_new_tokens to max_new_tokens - 1",
        unit="tokens",
        at_least=1,
        null="the limit is max_new_tokens",
    )
    temperature: float = option(1.0, help="sampling temperature; 0 takes the likeliest token", at_least=0)
    top_p: float = option(
        1.0, help="nucleus sampling: the likeliest tokens of this joint probability are drawn from", above=0, at_most=1
    )
    top_k: int = option(0, help="so many of the likeliest tokens are drawn from; 0: all", at_least=0)
    clean: str = option(
        "stop",
        help="what becomes of a response",
        choices={
            "stop": "it ends where the layout's next turn begins",
            "lmflow": "RAFT's cleaning",
            "none": "it stays as it is",
        },
    )
    batch_size: int = option(8, help="responses generated at once; vLLM batches by itself", at_least=1)
    backend: str = option("auto", help="what generates", choices=BACKENDS)
    launch: LaunchConfig = section(LaunchConfig, help="ddp: each process takes its share of the prompts")


@dataclass
class ScoreConfig:
    """``score``: rewards of sampled responses."""

    output_dir: str = output_dir()
    responses: str = option(help="file or folder of the verb `sample`: prompt and responses")
    model: LoadedRewardModelConfig = section(LoadedRewardModelConfig)
    variant: str | None = option(
        None, help="of reading a text; released: as MORE's code does", choices=tuple(VARIANTS), null="as trained"
    )
    text: TextConfig = section(TextConfig)
    batch_size: int = option(16, help="texts per forward", at_least=1)


@dataclass
class SelectConfig:
    """``select``: of the scored responses to a prompt the best, or a preference pair."""

    output_dir: str = output_dir()
    scored: str = option(help="file or folder of the verb `score`: prompt, responses, scores")
    n: int | None = option(None, help="of the first n responses", at_least=1, null="of all")
    keep: str = option(
        "best",
        help="what is kept of a prompt's responses",
        choices={
            "best": "for SFT",
            "pairs": "best and worst, for preference optimisation",
            "all": "with their rewards",
        },
    )
    discard: str = option(
        "none",
        help="which responses are discarded",
        choices={"none": "", "lmflow": "those with a '#' or of fewer than 4 characters"},
    )
    discard_reward: float | None = option(None, help="what a discarded response counts", null="it takes no part")
    min_reward: float | None = option(None, help="drop a prompt whose best response counts less", null="none for that")


@dataclass
class AlignConfig(BaseRunConfig):
    """``align``: fine-tune a language model on the selected responses (rejection-sampling alignment)."""

    selected: str = option(help="file or folder of the verb `select`, or rows with `chosen` (a transcript)")
    eval_fraction: float = option(0.0, help="hold out this share for the loss and the perplexity", at_least=0, below=1)
    max_length: int = option(768, help="of prompt and response", unit="tokens", at_least=2)
    layout: str = option("chat", help="how prompt and response are written", choices=LAYOUTS)
    response_separator: str = option(
        "space", help='transcript, lmflow: between "Assistant:" and the response', choices=SEPARATORS
    )
    loss_mean: str = option(
        "tokens",
        help="what the loss of a step is the mean of",
        choices={"tokens": "the step's tokens", "examples": "MORE's release: one row per device at a time"},
    )
    trainer: dict[str, Any] = like(
        BaseRunConfig, "trainer", {}, help="any field of trl.SFTConfig", fields_of="trl:SFTConfig", fields=SFT
    )


@dataclass
class PerplexityConfig:
    """``perplexity``: of given answers to given prompts under a language model."""

    output_dir: str = output_dir()
    model: LoadedModelConfig = section(LoadedModelConfig)
    files: list[str] = option(help="rows with `prompt` and `answer` (texts), or `chosen` (a transcript)")
    answer: str = option(
        "reply", help="of a transcript", choices={"reply": "all of it", "last_paragraph": "MORE's published test files"}
    )
    max_rows: int | None = option(None, help="the first so many rows of each file", at_least=1, null="all")
    max_length: int = option(512, help="tokens; a longer text loses its beginning", unit="tokens", at_least=2)
    gate: float = option(10_000.0, help="an answer of this perplexity or a higher one is an outlier", at_least=1)
    batch_size: int = option(8, help="answers per forward", at_least=1)
    launch: LaunchConfig = section(LaunchConfig, help="ddp: each process takes its share of the batches")


@dataclass
class RaftConfig:
    """``raft``: sample, score, select and align, each as a run of its own below this one, iteration by iteration."""

    output_dir: str = output_dir()
    seed: int = seed(help="seed of the first iteration; the next ones count on from it")
    iterations: int = option(1, help="each begins with the model of the one before", at_least=1)
    prompts: str = option(help="rows with `prompt` (text or messages) or `instruction`, or `chosen` (a transcript)")
    prompts_per_iteration: int | None = option(
        None, help="the next so many prompts, from the front again after the last", at_least=1, null="all of them"
    )
    model: ModelConfig = section(ModelConfig, help="the policy")
    reward: str = option(help="the reward model: a Hub id or the model folder of a run")
    sample: dict[str, Any] = option({}, help="any key of `sample` that raft does not set, e.g. sample.n=8")
    score: dict[str, Any] = option({}, help="likewise of `score`, e.g. score.batch_size=32")
    select: dict[str, Any] = option({}, help="likewise of `select`")
    align: dict[str, Any] = option({}, help="likewise of `align`, e.g. align.trainer.learning_rate=1e-5")
