"""Structured configuration shared by every paper: what a run reads, trains, launches and writes.

Each paper's own ``config.py`` subclasses :class:`RunConfig` and adds its method. Hydra composes these with
the YAML groups in ``reproalign.common.configs`` (``data``, ``model``, ``launch``) and in the paper's own
``configs`` folder. ``null`` always means "not set". Lengths are in tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from reproalign.common.options import option, section
from reproalign.common.precision import settle_precision


@dataclass
class LoraConfig:
    """Low-rank adapters (Hu et al., 2021); defaults are the alignment-handbook's."""

    enabled: bool = False
    r: int = 16
    alpha: int = 32
    dropout: float = 0.05  # of the adapters' inputs while they are trained, in [0, 1)
    target_modules: list[str] | None = None  # null: PEFT's default for the architecture; [all-linear]: every linear one
    modules_to_save: list[str] | None = None
    merge: bool = False  # write merged weights instead of an adapter at the end


@dataclass
class ModelConfig:
    """Which weights to start from and how to hold them."""

    name: str = MISSING  # Hub id, local folder, or "demo:smollm2-135m-instruct" / "tiny:llama"
    revision: str | None = None
    tokenizer: str | None = None  # null: the model's
    chat_template: str | None = None  # null: the tokenizer's own; or a name in common.text.templates; or a file
    dtype: str = (
        "auto"  # float32 | bfloat16 | float16: of weights and optimiser states; auto: as saved, with autocast float32
    )
    dropout: bool | None = None  # of a model in training, adapters' lora.dropout included; null: as the verb has it
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    quantization: str | None = None  # null | 4bit | 8bit (QLoRA; needs bitsandbytes)
    gemma_numerics: str | None = None  # Gemma 1: current | transformers-4.38 (exact GELU); null: as the variant says
    lora: LoraConfig = field(default_factory=LoraConfig)


@dataclass
class RewardModelConfig(ModelConfig):
    """A language model with a linear head on its final hidden states, without bias: r = w · pool(h)."""

    dtype: str = "float32"  # of weights and optimiser states: 16 bits lose small updates; trainer.bf16 computes in 16
    pooling: str | None = (
        None  # eos | last (the one before) | average | max | last_not_pad | first_pad; null: as trained, new: last
    )


@dataclass
class TextConfig:
    """How a dialogue becomes the token ids that a reward model reads; null: as it was trained."""

    layout: str | None = None  # transcript (Human: …) | lmflow (###Human: …) | chat; null: as trained, new: transcript
    max_length: int | None = None  # tokens, special tokens included; null: as trained, new: 512
    truncation_side: str | None = None  # what an over-long text loses: left | right end; null: as trained, new: left
    padding_side: str | None = None  # right | left; null: as trained, new: right
    response_separator: str | None = None  # after the last "Assistant:": space | none; null: as trained, new: space


@dataclass
class RowsConfig:
    """Where the rows of one data set are, and which of them are used; ``data.sets.NAME.*``."""

    source: str | None = option(
        None,
        help="how its rows are read",
        choices="reproalign.common.data.sources:SOURCES",
        null="recognised by the columns of the first row",
    )
    path: str | None = option(
        None,
        help="local rows: .json, .jsonl, .jsonl.gz, .parquet, a save_to_disk folder, a folder with a file per split; "
        "or demo:pairs-train",
        null="from the Hub",
    )
    name: str | None = option(None, help="data set on the Hub", null="the source's home")
    config_name: str | None = option(None, help="configuration of the data set on the Hub", null="its default one")
    revision: str | None = option(None, help="branch, tag or commit on the Hub", null="the default branch")
    split: str | None = option(None, help="split to train on, or what its file's name begins with", null="the source's")
    first: int | None = option(None, help="only the first so many", at_least=1, null="all")


@dataclass
class SetConfig(RowsConfig):
    """One data set with its held-out rows; ``data.sets.NAME.*``."""

    fraction: float = option(1.0, help="only the first share of its training rows", above=0, at_most=1)
    eval_path: str | None = option(None, help="local held-out rows, as path", null="none")
    eval_split: str | None = option(
        None, help="held-out split on the Hub", null="the source's, where the rows are from its home"
    )
    eval_first: int | None = option(None, help="only the first so many held-out ones", at_least=1, null="all")


@dataclass
class ReadingConfig:
    """What is said of all data sets together; ``data.*``."""

    sets: dict[str, SetConfig] = option({}, help="the data sets, each under a name of your choice")
    eval_fraction: float = option(
        0.0, help="hold out this share of the prompts of each set that has no held-out rows", at_least=0, below=1
    )
    on_error: str = option(
        "raise",
        help="what becomes of a row that does not fit",
        choices={"raise": "the run stops", "skip": "listed in rejects-*.jsonl"},
    )
    num_proc: int | None = option(None, help="processes that prepare rows", at_least=1, null="one")
    cache_dir: str | None = option(None, help="folder of prepared rows", null="the user's cache folder")


@dataclass
class DataConfig(ReadingConfig):
    """The data sets of a run; several are mixed."""

    max_rows: int | None = option(None, help="training rows in all", at_least=1, null="all")
    max_eval_rows: int | None = option(None, help="held-out rows in all", at_least=1, null="all")


SYSTEM = "system turn of a dialogue that has none: auto (an empty one where the template knows them), or its text"
OVERLONG = {"truncate": "cut", "drop": "left out", "error": "the run stops"}
SPECIAL_TOKENS = {
    "dedupe": "BOS once, for tokenizers that begin with it, and one EOS",
    "released": "both always added",
}


@dataclass
class DialogueTextConfig:
    """How whole dialogues become token ids, for supervised fine-tuning; ``text.*``."""

    system_message: str | None = option("auto", help=SYSTEM, null="none")
    max_length: int = option(1024, help="of a dialogue", unit="tokens", at_least=2)


@dataclass
class RewardTextConfig(DialogueTextConfig):
    """How a reward model reads both dialogues of a pair; ``text.*``."""

    overlong: str = option("truncate", help="what becomes of a pair with a longer side", choices=OVERLONG)
    special_tokens: str = option("dedupe", help="BOS and EOS", choices=SPECIAL_TOKENS)


@dataclass
class PairTextConfig(RewardTextConfig):
    """How prompts and responses become token ids, for a policy; ``text.*``."""

    max_prompt_length: int = option(512, help="of a prompt that does not fit", unit="tokens", at_least=1)
    truncation: str = option("keep_end", help="which end of such a prompt survives", choices=["keep_end", "keep_start"])
    boundary: str = option(
        "exact",
        help="between prompt and response",
        choices={"exact": "no token crosses it", "released": "TRL 0.7.7's rule"},
    )


@dataclass
class LaunchConfig:
    """How processes are started."""

    strategy: str = "single"  # single | auto (see docs) | ddp | fsdp | zero1 | zero2 | zero3 | zero3-offload
    processes: int = 1  # in all, over all machines
    machines: int = 1
    machine_rank: int = 0
    main_address: str | None = None
    main_port: int = 29500
    slurm: bool = False  # print a SLURM script instead of running
    slurm_options: dict[str, str] = field(default_factory=dict)  # e.g. {time: "24:00:00", partition: gpu}


@dataclass
class ReferenceConfig:
    """How the frozen reference policy is held."""

    mode: str = "auto"  # auto | copy | adapter-disabled | cached
    model: str | None = None  # null: the policy's starting weights
    revision: str | None = None
    batch_size: int = 8  # for computing cached log-probs


@dataclass
class LogprobsConfig:
    """How per-token log-probabilities are computed."""

    implementation: str = "chunked"  # chunked | plain
    chunk_size: int | None = None  # token positions whose logits exist at once; null: chosen from the vocabulary size


@dataclass
class BaseRunConfig:
    """What every training run has, whatever it reads."""

    output_dir: str = MISSING
    seed: int = 42
    resume: str = "auto"  # auto | never | a checkpoint folder
    on_bad_checkpoint: str = "fallback"  # fallback: use the last good one | stop
    model: ModelConfig = field(default_factory=ModelConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    trainer: dict[str, Any] = field(default_factory=dict)  # any field of transformers.TrainingArguments

    @staticmethod
    def settle(config: dict[str, Any]) -> dict[str, Any]:
        """Settle what depends on several keys: :func:`~reproalign.common.precision.settle_precision`."""
        return settle_precision(config)


@dataclass
class RunConfig(BaseRunConfig):
    """A run of a policy on one data set, or on several that are mixed."""

    data: DataConfig = section(DataConfig)
    logprobs: LogprobsConfig = field(default_factory=LogprobsConfig)
