"""Options of ``ama data`` and ``ama align raft``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reproalign.common.config.model import ModelConfig
from reproalign.common.config.text import LAYOUTS
from reproalign.common.options import option, output_dir, section, seed, variant
from reproalign.common.options.shared import SEEDS

FILTERS: dict[str, Any] = {
    "help": "what becomes of responses before they are scored",
    "choices": {"auto": "lmflow with layout=lmflow", "lmflow": "clean and discard as RAFT's release", "none": ""},
}


@dataclass
class PreferenceDataConfig:
    """``ama data``: preference rows as prompts, dialogues and pairs, divided as the paper's are."""

    output_dir: str = output_dir()
    seed: int = seed(help="of split=fraction")
    variant: str = variant(help="which part of the test rows the evaluation prompts are of")
    train: list[str] = option([], help="files of training rows, read one after the other; none: the Hub")
    test: list[str] = option([], help="files of test rows, likewise")
    name: str = option("Anthropic/hh-rlhf", help="data set on the Hub, where no files are given")
    folders: list[str] = option([], help="folders in it, e.g. [helpful-base,harmless-base]; none: its own")
    revision: str | None = option(None, help="branch, tag or commit of the data set", null="its default branch")
    train_split: str = option("train", help="split on the Hub that is trained on")
    test_split: str | None = option("test", help="split on the Hub that is tested on", null="none")
    split: str = option(
        "published",
        help="how rows are divided",
        choices={
            "published": "6275 test rows join the training",
            "test": "all test rows are held out",
            "fraction": "eval_fraction of the prompts is held out",
        },
    )
    test_first: int = option(
        6275, help="split=published: so many test rows, from the first on, join the training", at_least=1
    )
    test_last: int = option(6226, help="split=published: so many, from the last back, are held out", at_least=1)
    eval_fraction: float = option(
        0.05, help="split=fraction: hold out the rows of this share of the prompts", above=0, below=1
    )
    on_error: str = option(
        "skip", help="a row that does not fit", choices={"skip": "listed in rejects.jsonl", "raise": "ends the run"}
    )
    tokenizer: str | None = option(
        None, help="the policy's (name or folder), which measures prompts", null="none, with max_prompt_length=null"
    )
    chat_template: str | None = option(
        None,
        help="layout=chat: how a dialogue is written",
        also="a name in reproalign.common.text.templates, or a file",
        null="the tokenizer's own",
    )
    layout: str = option("lmflow", help="in which form prompts are measured", choices=LAYOUTS)
    max_prompt_length: int | None = option(
        256,
        help="of a prompt, special tokens counted; longer ones are left out",
        unit="tokens",
        at_least=1,
        null="any length",
    )
    dedup_prompts: bool = option(False, help="keep the first of equal prompts")
    decontaminate: bool = option(False, help="leave evaluation prompts out that the training part has too")


@dataclass
class RaftConfig:
    """``ama align raft``: sample, score, select and train, each as a run of its own below this one, again and again."""

    output_dir: str = output_dir()
    seed: int = seed(
        help="seed of the first iteration; the next ones count on (variant=paper) or have the same (released)"
    )
    variant: str = variant(help="order of the prompts, lengths, seeds, texts without separator")
    model: ModelConfig = section(ModelConfig, help="the policy that the first iteration begins with")
    reward: str = option(help="the reward model: a Hub id or the model folder of a run")
    layout: str = option("lmflow", help="how the policy is asked and trained", choices=LAYOUTS)
    iterations: int = option(10, help="rounds of sampling and training", at_least=1)
    prompts: str = option(help="file or folder of `ama data`, or any rows with `prompt` (text or messages)")
    prompts_per_iteration: int = option(2048, help="prompts of an iteration", at_least=1)
    prompt_seed: int = option(1, help="of the prompts' shuffle", at_least=0, at_most=SEEDS - 1)
    ranks: int = option(
        1, help="variant=released: processes that the release would have dealt the prompts to", at_least=1
    )
    max_prompt_length: int = option(
        256, help="tokens, special ones counted; longer prompts are left out", unit="tokens", at_least=1
    )
    n: int = option(32, help="responses to a prompt", at_least=1)
    temperature: float = option(1.0, help="sampling temperature; 0 takes the likeliest token", at_least=0)
    max_new_tokens: int | None = option(
        None, help="longest response", unit="tokens", at_least=1, null="196; variant=released: 128, never reached"
    )
    min_new_tokens: int | None = option(
        None,
        help="lengths are drawn from min to max - 1, once a batch",
        unit="tokens",
        at_least=1,
        null="they are not; variant=released: 64",
    )
    filters: str = option("auto", **FILTERS)
    min_reward: float | None = option(
        None, help="drop a prompt whose best response has less", null="none is dropped; variant=released: -1000"
    )
    record: str = option(
        "mean", help="column A of reward_record.txt, of the responses to a prompt", choices=("mean", "first")
    )
    keep_samples: bool = option(
        False, help="samples.jsonl: all scored responses of all iterations, beside the selected"
    )
    sample: dict[str, Any] = option({}, help="any other key of `sample`, e.g. sample.batch_size=64")
    score: dict[str, Any] = option({}, help="likewise of `score`, e.g. score.batch_size=32")
    select: dict[str, Any] = option({}, help="likewise of `select`")
    train: dict[str, Any] = option({}, help="likewise of `align sft`, e.g. train.trainer.learning_rate=1e-6")
