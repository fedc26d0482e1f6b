"""Options of the verb ``mt-bench``."""

from __future__ import annotations

from dataclasses import dataclass

from reproalign.common.config.model import LoadedModelConfig
from reproalign.common.judging.endpoint import EndpointConfig
from reproalign.common.options import like, option, output_dir, section, seed
from reproalign.common.options.shared import BACKENDS


@dataclass
class AnsweringModelConfig(LoadedModelConfig):
    """The model that answers, unless its answers are given."""

    name: str = like(
        LoadedModelConfig,
        "name",
        "",
        help="Hub id, folder, demo:NAME or tiny:NAME; empty where answers or judgments are given",
    )


@dataclass
class MTBenchConfig:
    """``mt-bench``: a model's answers to questions of two turns, a judge's ratings of them, and the scores."""

    output_dir: str = output_dir()
    seed: int = seed(0, help="seed of the answers (candidate 0, as in FastChat) and of the bootstrap")
    questions: str | None = option(None, help="FastChat's question file", null="none, which only judgments= allows")
    max_questions: int | None = option(None, help="the first so many questions", at_least=1, null="all")
    model: AnsweringModelConfig = section(AnsweringModelConfig)
    model_id: str | None = option(
        None, help="as the files name the model", null="after model.name, or as the given file names it"
    )
    answers: str | None = option(
        None, help="FastChat's answer file, graded in place of answering", null="the model answers"
    )
    judgments: str | None = option(
        None, help="FastChat's judgment file, reported in place of grading", null="the judge grades"
    )
    template: str = option(
        "chat",
        help="how the model is asked",
        choices={
            "chat": "its own template, or model.chat_template",
            "gemma-custom": "MMPO's authors'; see docs/evaluation.md",
        },
    )
    system_message: str | None = option(
        None,
        help="template=chat, the system turn: auto (empty, where the template knows one), or its text",
        null="none",
    )
    temperatures: dict[str, float] = option({}, help="by category, in place of FastChat's; 0: greedy", at_least=0)
    top_p: float = option(
        1.0, help="nucleus sampling: the likeliest tokens of this joint probability are drawn from", above=0, at_most=1
    )
    top_k: int = option(50, help="what transformers drew from when FastChat named none; 0: all tokens", at_least=0)
    max_new_tokens: int = option(1024, help="of each turn", unit="tokens", at_least=1)
    batch_size: int = option(8, help="dialogues at once; vLLM batches by itself", at_least=1)
    backend: str = option("auto", help="what generates", choices=BACKENDS)
    endpoint: EndpointConfig = section(EndpointConfig, help="the judge; without endpoint.model: answers only")
    prompts: str | None = option(
        None, help="FastChat's judge_prompts.jsonl", null="this project's own, not comparable with published"
    )
    references: str | None = option(
        None, help="answer file for math, reasoning, coding", null="what the questions hold"
    )
    confidence: float = option(0.95, help="of the bootstrap intervals over questions", above=0, below=1)
    resamples: int = option(2000, help="of the bootstrap", at_least=100)
