"""Structured configuration shared by every paper: what a run reads, trains, launches and writes.

Each paper's own ``config.py`` subclasses :class:`RunConfig` and adds its method. Hydra composes these with
the YAML groups in ``reproalign.common.configs`` (``data``, ``model``, ``launch``) and in the paper's own
``configs`` folder. ``null`` always means "not set". Lengths are in tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

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
class DataConfig:
    """Where rows come from and how they become token ids."""

    source: str = MISSING  # a name registered in common.data.sources
    name: str | None = None  # Hub data set
    config_name: str | None = None
    revision: str | None = None
    train_split: str | None = "train"
    eval_split: str | None = None
    path: str | None = None  # local training rows (.json, .jsonl, .jsonl.gz, .parquet); replaces the Hub
    eval_path: str | None = None
    eval_fraction: float = 0.0  # hold out this share of the training rows when there is no evaluation split
    fraction: float = 1.0  # first share of the training rows
    max_rows: int | None = None
    max_eval_rows: int | None = None
    mix: dict[str, float] | None = None  # several Hub data sets of one schema: name -> fraction
    on_error: str = "raise"  # raise | skip
    system_message: str | None = "auto"  # null: none; auto: empty system turn where the template knows one; or text
    max_length: int = 1024
    max_prompt_length: int = 512
    truncation: str = "keep_end"  # which end of an over-long prompt survives: keep_end | keep_start
    overlong: str = "truncate"  # truncate | drop | error
    special_tokens: str = "dedupe"  # dedupe | released (always add BOS and EOS)
    boundary: str = "exact"  # exact | released
    num_proc: int | None = None
    cache_dir: str | None = None  # null: the user's cache folder


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
    """A run on one data set, or on a mixture of one schema."""

    data: DataConfig = field(default_factory=DataConfig)
    logprobs: LogprobsConfig = field(default_factory=LogprobsConfig)
