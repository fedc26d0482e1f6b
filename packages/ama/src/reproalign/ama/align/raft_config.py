"""Options of ``ama data`` and ``ama align raft``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from reproalign.common.config import ModelConfig


@dataclass
class DataConfig:
    """``ama data``: preference rows as prompts, dialogues and pairs, divided as the paper's are."""

    output_dir: str = MISSING
    seed: int = 42  # of split=fraction
    variant: str = "paper"  # paper | released: which part of the test rows the evaluation prompts are of
    train: list[str] = field(default_factory=list)  # files of training rows, read one after the other; none: the Hub
    test: list[str] = field(default_factory=list)  # files of test rows, likewise
    name: str = "Anthropic/hh-rlhf"  # data set on the Hub, where no files are given
    folders: list[str] = field(default_factory=list)  # folders in it, e.g. [helpful-base,harmless-base]; none: its own
    revision: str | None = None
    train_split: str = "train"
    test_split: str | None = "test"
    split: str = "published"  # published (6275 test rows join the training) | test (all are held out) | fraction
    test_first: int = 6275  # split=published: so many test rows, from the first on, join the training
    test_last: int = 6226  # split=published: so many, from the last back, are held out
    eval_fraction: float = 0.05  # split=fraction: hold out the rows of this share of the prompts, in (0, 1)
    on_error: str = "skip"  # skip (rows go to rejects.jsonl) | raise
    tokenizer: str | None = None  # the policy's (its name or folder), which measures prompts
    chat_template: str | None = (
        None  # layout=chat: null: the tokenizer's own; or a name in common.text.templates; a file
    )
    layout: str = "lmflow"  # in which form they are measured: lmflow (###Human: …) | transcript | chat (template)
    max_prompt_length: int | None = 256  # tokens of a prompt, special ones counted; longer ones are left out; null: any
    dedup_prompts: bool = False  # keep the first of equal prompts
    decontaminate: bool = False  # leave evaluation prompts out that the training part has too


@dataclass
class RaftConfig:
    """``ama align raft``: sample, score, select and train, each as a run of its own below this one, again and again."""

    output_dir: str = MISSING
    seed: int = 42  # of the first iteration; the next ones count on (variant=paper) or have the same (released)
    variant: str = "paper"  # paper | released: order of the prompts, lengths, seeds, texts without separator
    model: ModelConfig = field(default_factory=ModelConfig)  # the policy that the first iteration begins with
    reward: str = MISSING  # the reward model: a Hub id or the model folder of a run
    layout: str = "lmflow"  # how the policy is asked and trained: lmflow (###Human: …) | transcript | chat (template)
    iterations: int = 10  # at least 1
    prompts: str = MISSING  # file or folder of `ama data`, or any rows with `prompt` (text or messages)
    prompts_per_iteration: int = 2048  # at least 1
    prompt_seed: int = 1  # of their shuffle
    ranks: int = 1  # variant=released: processes that the release would have dealt the prompts to, at least 1
    max_prompt_length: int = 256  # tokens, special ones counted; longer prompts are left out
    n: int = 32  # responses to a prompt
    temperature: float = 1.0
    max_new_tokens: int | None = None  # null: 196; variant=released: 128, never reached
    min_new_tokens: int | None = None  # lengths are drawn from min to max - 1, once a batch; null: no; released: 64
    filters: str = "auto"  # lmflow (clean and discard as RAFT's release) | none; auto: lmflow with layout=lmflow
    min_reward: float | None = None  # drop a prompt whose best response has less; null: no; variant=released: -1000
    record: str = "mean"  # column A of reward_record.txt: mean of the responses to a prompt | first of them
    keep_samples: bool = False  # samples.jsonl: all scored responses of all iterations, beside the selected
    sample: dict[str, Any] = field(default_factory=dict)  # any other key of `sample`, e.g. sample.batch_size=64
    score: dict[str, Any] = field(default_factory=dict)  # likewise of `score`, e.g. score.batch_size=32
    select: dict[str, Any] = field(default_factory=dict)  # likewise of `select`
    train: dict[str, Any] = field(
        default_factory=dict
    )  # likewise of `align sft`, e.g. train.trainer.learning_rate=1e-6
