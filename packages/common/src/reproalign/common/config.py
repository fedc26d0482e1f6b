"""Structured configuration shared by every paper: what a run reads, trains, launches and writes.

Each paper's own ``config.py`` subclasses :class:`RunConfig` and adds its method. Hydra composes these with
the YAML groups in ``reproalign.common.configs`` (``data``, ``model``, ``launch``) and in the paper's own
``configs`` folder. ``null`` always means "not set". Lengths are in tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reproalign.common.options import Option, like, option, output_dir, section, seed
from reproalign.common.precision import settle_precision

DTYPES = {"auto": "as saved; beside autocast: float32", "float32": "", "bfloat16": "", "float16": ""}
STRATEGIES = {
    "auto": "fsdp on several GPUs, otherwise single",
    "single": "one process",
    "ddp": "each process holds all weights",
    "fsdp": "weights, gradients and states sharded",
    "zero1": "DeepSpeed: states sharded",
    "zero2": "and gradients",
    "zero3": "and weights",
    "zero3-offload": "and states in the CPU's memory",
}
LAYOUTS = {"chat": "its chat template", "transcript": "Human: … Assistant: …", "lmflow": "###Human: …###Assistant: …"}
SEPARATORS = {"space": "", "none": ""}
BACKENDS = {"auto": "vllm where it is installed and there is a GPU", "transformers": "", "vllm": ""}
RESUME: dict[str, Any] = {
    "help": "an interrupted run",
    "choices": {"auto": "go on from its last checkpoint", "never": "refuse its folder"},
    "also": "a checkpoint folder",
}
GO_ON: dict[str, Any] = {
    "help": "an interrupted run",
    "choices": {"auto": "go on with it, to the same bits", "never": "refuse its folder"},
}


# What is set elsewhere in the configuration, so that one fact has one name; and what a training cannot do without.
TRAINER: dict[str, Option | str] = {
    "output_dir": "output_dir",
    "seed": "seed",
    "data_seed": "seed",
    "resume_from_checkpoint": "resume",
    "remove_unused_columns": "nothing: the collators know their columns",
    "learning_rate": Option("peak learning rate", at_least=0),
    "lr_scheduler_type": Option("its course, e.g. linear, cosine or constant"),
    "warmup_ratio": Option("share of the steps over which the rate rises", at_least=0, at_most=1),
    "weight_decay": Option("of AdamW", at_least=0),
    "num_train_epochs": Option("passes over the rows, unless max_steps is set", above=0),
    "max_steps": Option("optimiser steps; -1: by the epochs", at_least=-1),
    "per_device_train_batch_size": Option("rows per forward and backward of a process", at_least=1),
    "per_device_eval_batch_size": Option("rows per forward of an evaluation", at_least=1),
    "gradient_accumulation_steps": Option("forwards per optimiser step", at_least=1),
    "gradient_checkpointing": Option("less memory, a second forward"),
    "max_grad_norm": Option("gradients of a larger norm are scaled down to it; 0: none", at_least=0),
    "bf16": Option("compute in bfloat16 under autocast"),
    "eval_strategy": Option("when to evaluate: no, steps or epoch"),
    "eval_steps": Option("steps between two evaluations, or a share of all", above=0),
    "save_strategy": Option("when to write a checkpoint: no, steps, epoch or best"),
    "save_steps": Option("steps between two checkpoints, or a share of all", above=0),
    "save_total_limit": Option("checkpoints that are kept", at_least=1),
    "logging_steps": Option("steps between two rows of the log, or a share of all", above=0),
    "report_to": Option(
        "where curves go",
        needs={name: name for name in ("tensorboard", "wandb", "trackio", "mlflow", "comet_ml", "swanlab", "clearml")},
    ),
}


@dataclass
class LoraConfig:
    """Low-rank adapters (Hu et al., 2021); defaults are the alignment-handbook's."""

    enabled: bool = option(False, help="train low-rank adapters in place of the weights")
    r: int = option(16, help="rank of the adapters", at_least=1)
    alpha: int = option(32, help="the adapters' product is scaled by alpha / r", at_least=1)
    dropout: float = option(0.05, help="of the adapters' inputs while they are trained", at_least=0, below=1)
    target_modules: list[str] | None = option(
        None,
        help="modules that get adapters; [all-linear]: every linear one",
        null="PEFT's default for the architecture",
    )
    modules_to_save: list[str] | None = option(
        None, help="modules trained whole and saved beside the adapters", null="none"
    )
    merge: bool = option(False, help="write merged weights instead of an adapter at the end")


@dataclass
class ModelConfig:
    """Which weights to start from and how to hold them."""

    name: str = option(help="Hub id, local folder, demo:smollm2-135m-instruct, or tiny:llama")
    revision: str | None = option(None, help="branch, tag or commit of the Hub repository", null="its default branch")
    tokenizer: str | None = option(None, help="Hub id or folder of the tokenizer", null="the model's own")
    chat_template: str | None = option(
        None,
        help="how a dialogue is written",
        also="a name in reproalign.common.text.templates, or a file",
        null="the tokenizer's own",
    )
    dtype: str = option("auto", help="of weights and optimiser states", choices=DTYPES)
    dropout: bool | None = option(
        None, help="dropout of a model in training, adapters' lora.dropout included", null="as the verb has it"
    )
    attn_implementation: str | None = option(
        None, help="attention of transformers, e.g. eager, sdpa or flash_attention_2", null="transformers chooses"
    )
    trust_remote_code: bool = option(False, help="run code that lies beside the weights on the Hub")
    quantization: str | None = option(
        None,
        help="hold the frozen weights in fewer bits (QLoRA; needs bitsandbytes)",
        choices=("4bit", "8bit"),
        null="not quantized",
    )
    gemma_numerics: str | None = option(
        None,
        help="of Gemma 1's activations",
        choices={"current": "as transformers has it now", "transformers-4.38": "exact GELU"},
        null="as the variant says",
    )
    lora: LoraConfig = section(LoraConfig)


@dataclass
class RewardModelConfig(ModelConfig):
    """A language model with a linear head on its final hidden states, without bias: r = w · pool(h)."""

    dtype: str = like(
        ModelConfig,
        "dtype",
        "float32",
        help="of weights and optimiser states: 16 bits lose small updates; trainer.bf16 computes in 16",
    )
    pooling: str | None = option(
        None,
        help="which final hidden state is read",
        choices={
            "eos": "of the first EOS",
            "last": "of the token before the last",
            "average": "",
            "max": "",
            "last_not_pad": "",
            "first_pad": "",
        },
        null="as trained; new: last",
    )


@dataclass
class TextConfig:
    """How a dialogue becomes the token ids that a reward model reads; null: as it was trained."""

    layout: str | None = option(
        None, help="how a dialogue is written", choices=LAYOUTS, null="as trained, new: transcript"
    )
    max_length: int | None = option(
        None, help="special tokens included", unit="tokens", at_least=3, null="as trained, new: 512"
    )
    truncation_side: str | None = option(
        None, help="the end that an over-long text loses", choices=("left", "right"), null="as trained, new: left"
    )
    padding_side: str | None = option(
        None, help="where batches are filled up", choices=("right", "left"), null="as trained, new: right"
    )
    response_separator: str | None = option(
        None, help='after the last "Assistant:"', choices=SEPARATORS, null="as trained, new: space"
    )


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


@dataclass
class PreparingConfig(ReadingConfig):
    """Likewise, of rows that are prepared once and kept."""

    num_proc: int | None = option(None, help="processes that prepare rows", at_least=1, null="one")
    cache_dir: str | None = option(None, help="folder of prepared rows", null="the user's cache folder")


@dataclass
class DataConfig(PreparingConfig):
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

    strategy: str = option("single", help="how processes share the work", choices=STRATEGIES)
    processes: int = option(1, help="processes in all, over all machines", at_least=1)
    machines: int = option(1, help="machines that take part", at_least=1)
    machine_rank: int = option(0, help="which of the machines this is, from 0 on", at_least=0)
    main_address: str | None = option(None, help="address of machine 0, where there are several", null="this machine")
    main_port: int = option(29500, help="port of machine 0; 0: a free one", at_least=0, at_most=65535)
    slurm: bool = option(False, help="print a SLURM script instead of running")
    slurm_options: dict[str, str] = option({}, help='e.g. {time: "24:00:00", partition: gpu}')


@dataclass
class HubConfig:
    """Where the finished model goes."""

    push: str | None = option(None, help="repository on the Hugging Face Hub, ORG/NAME", null="the model is not pushed")
    private: bool = option(False, help="make a new repository private")


@dataclass
class ReferenceConfig:
    """How the frozen reference policy is held."""

    mode: str = option(
        "auto",
        help="how the frozen reference policy is held",
        choices={
            "auto": "the cheapest that fits the run",
            "copy": "a second model",
            "adapter-disabled": "the policy without its adapters",
            "cached": "log-probs computed once, before training",
        },
    )
    model: str | None = option(
        None, help="Hub id or folder of the reference policy", null="the policy's starting weights"
    )
    revision: str | None = option(None, help="branch, tag or commit of the Hub repository", null="its default branch")
    batch_size: int = option(8, help="rows per forward while log-probs are cached", at_least=1)


@dataclass
class LogprobsConfig:
    """How per-token log-probabilities are computed."""

    implementation: str = option(
        "chunked",
        help="how per-token log-probs are computed",
        choices={"chunked": "a few positions' logits at a time", "plain": "all logits at once"},
    )
    chunk_size: int | None = option(
        None, help="token positions whose logits exist at once", at_least=1, null="chosen from the vocabulary's size"
    )


@dataclass
class BaseRunConfig:
    """What every training run has, whatever it reads."""

    output_dir: str = output_dir()
    seed: int = seed()
    resume: str = option("auto", **RESUME)
    on_bad_checkpoint: str = option(
        "fallback",
        help="what to do with a checkpoint that cannot be read",
        choices={"fallback": "use the last good one", "stop": ""},
    )
    model: ModelConfig = section(ModelConfig)
    launch: LaunchConfig = section(LaunchConfig)
    trainer: dict[str, Any] = option(
        {},
        help="any field of transformers.TrainingArguments",
        fields_of="transformers:TrainingArguments",
        fields=TRAINER,
    )
    hub: HubConfig = section(HubConfig)

    @staticmethod
    def settle(config: dict[str, Any]) -> dict[str, Any]:
        """Settle what depends on several keys: :func:`~reproalign.common.precision.settle_precision`."""
        return settle_precision(config)


@dataclass
class RunConfig(BaseRunConfig):
    """A run of a policy on one data set, or on several that are mixed."""

    data: DataConfig = section(DataConfig)
    logprobs: LogprobsConfig = section(LogprobsConfig)
