"""Options of the verb ``mt-bench``."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from reproalign.common.config import ModelConfig
from reproalign.common.judging.endpoint import EndpointConfig


@dataclass
class AnsweringModelConfig(ModelConfig):
    """The model that answers, unless its answers are given."""

    name: str = ""  # Hub id, folder, demo:NAME or tiny:NAME; empty where answers or judgments are given


@dataclass
class MTBenchConfig:
    """``mt-bench``: a model's answers to questions of two turns, a judge's ratings of them, and the scores."""

    output_dir: str = MISSING
    seed: int = 0  # of the answers (candidate 0, as in FastChat) and of the bootstrap
    questions: str | None = None  # FastChat's question file; only with judgments= it may be left out
    max_questions: int | None = None
    model: AnsweringModelConfig = field(default_factory=AnsweringModelConfig)
    model_id: str | None = None  # as the files name the model; null: after model.name, or as the given file names it
    answers: str | None = None  # FastChat's answer file, graded in place of answering
    judgments: str | None = None  # FastChat's judgment file, reported in place of grading
    template: str = "chat"  # chat (the model's own, or model.chat_template) | gemma-custom (MMPO's authors'; see docs)
    system_message: str | None = None  # template=chat, system turn: null (none) | auto (empty, where known) | text
    temperatures: dict[str, float] = field(default_factory=dict)  # by category, in place of FastChat's; 0: greedy
    top_p: float = 1.0
    top_k: int = 50  # what transformers drew from when FastChat named none; 0: all tokens
    max_new_tokens: int = 1024  # of each turn
    batch_size: int = 8  # dialogues at once; vLLM batches by itself
    backend: str = "auto"  # auto (vllm where it is installed and there is a GPU) | transformers | vllm
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)  # the judge; without endpoint.model: answers only
    prompts: str | None = (
        None  # FastChat's judge_prompts.jsonl; null: this project's own, not comparable with published
    )
    references: str | None = None  # answer file for math, reasoning, coding; null: what the questions hold
    confidence: float = 0.95  # of the bootstrap intervals over questions, in (0, 1)
    resamples: int = 2000  # of the bootstrap, at least 100
