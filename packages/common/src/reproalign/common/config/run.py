"""What every training run has: its folder, seed, model, processes, trainer, and where its model goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reproalign.common.config.data import DataConfig
from reproalign.common.config.launch import LaunchConfig
from reproalign.common.config.model import LogprobsConfig, ModelConfig
from reproalign.common.options import Option, option, output_dir, section, seed
from reproalign.common.options.shared import RESUME
from reproalign.common.precision import settle_precision

# What is set elsewhere in the configuration, so that one fact has one name; and what a training cannot do without.
TRAINER: dict[str, Option | str] = {
    "output_dir": "output_dir",
    "seed": "seed",
    "data_seed": "seed",
    "resume_from_checkpoint": "resume",
    "push_to_hub": "hub.push",
    "hub_model_id": "hub.push",
    "hub_private_repo": "hub.private",
    "remove_unused_columns": "nothing: the collators know their columns",
    **dict.fromkeys(("hub_strategy", "hub_always_push", "hub_revision"), "hub.push"),
    "hub_token": "HF_TOKEN in the environment",
    "enable_jit_checkpoint": "nothing: every signal leaves a checkpoint",
    **dict.fromkeys(("do_train", "do_predict"), "the verb"),
    "do_eval": "trainer.eval_strategy",
    **dict.fromkeys(("fsdp", "fsdp_config", "deepspeed", "parallelism_config", "local_rank"), "launch.*"),
    **dict.fromkeys(
        ("prediction_loss_only", "eval_do_concat_batches", "include_for_metrics", "batch_eval_metrics", "label_names"),
        "nothing: evaluations have their own rows and metrics",
    ),
    "learning_rate": Option("peak learning rate", at_least=0),
    "lr_scheduler_type": Option("its course, e.g. linear, cosine or constant"),
    "warmup_steps": Option("steps over which the rate rises; below 1: a share of all", at_least=0),
    "weight_decay": Option("of AdamW", at_least=0),
    "adam_beta1": Option("of AdamW: decay of the mean of gradients", at_least=0, below=1),
    "adam_beta2": Option("of AdamW: decay of the mean of their squares", at_least=0, below=1),
    "adam_epsilon": Option("of AdamW", at_least=0),
    "num_train_epochs": Option("passes over the rows, unless max_steps is set", above=0),
    "max_steps": Option("optimiser steps; -1: by the epochs", at_least=-1),
    "per_device_train_batch_size": Option("rows per forward and backward of a process", at_least=1),
    "per_device_eval_batch_size": Option("rows per forward of an evaluation", at_least=1),
    "gradient_accumulation_steps": Option("forwards per optimiser step", at_least=1),
    "gradient_checkpointing": Option("less memory, a second forward"),
    "neftune_noise_alpha": Option("scale of uniform noise on the embeddings", at_least=0),
    "max_grad_norm": Option("gradients of a larger norm are scaled down to it; 0: none", at_least=0),
    "bf16": Option("compute in bfloat16 under autocast"),
    "eval_strategy": Option("when to evaluate: no, steps or epoch"),
    "eval_steps": Option("steps between two evaluations, or a share of all", above=0),
    "eval_delay": Option("steps, or epochs, before the first evaluation", at_least=0),
    "eval_accumulation_steps": Option("batches of an evaluation between two moves to the CPU", at_least=1),
    "dataloader_num_workers": Option("processes that collate batches; 0: this one", at_least=0),
    "dataloader_prefetch_factor": Option("batches that each of them prepares in advance", at_least=1),
    "save_strategy": Option("when to write a checkpoint: no, steps, epoch or best"),
    "save_steps": Option("steps between two checkpoints, or a share of all", above=0),
    "save_total_limit": Option("checkpoints that are kept", at_least=1),
    "logging_steps": Option("steps between two rows of the log, or a share of all", above=0),
    "include_num_input_tokens_seen": Option(
        "tokens counted in the log", choices=("no", "all", "non_padding", True, False)
    ),
    "report_to": Option(
        "where curves go",
        needs={name: name for name in ("tensorboard", "wandb", "trackio", "mlflow", "comet_ml", "swanlab", "clearml")},
    ),
}


# Likewise of trl's, which is given rows of tokens and a tokenizer.
SFT: dict[str, Option | str] = {
    **TRAINER,
    **dict.fromkeys(("model_init_kwargs", "trust_remote_code", "eos_token", "pad_token"), "model.*"),
    "chat_template_path": "model.chat_template",
    **dict.fromkeys(
        ("dataset_text_field", "dataset_kwargs", "completion_only_loss", "assistant_only_loss"),
        "nothing: rows come tokenised",
    ),
    "dataset_num_proc": Option("processes that pack rows", at_least=1),
}


@dataclass
class HubConfig:
    """Where the finished model goes."""

    push: str | None = option(None, help="repository on the Hugging Face Hub, ORG/NAME", null="the model is not pushed")
    private: bool = option(False, help="make a new repository private")


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
        fields={**TRAINER, "label_smoothing_factor": "loss.*"},  # trl's trainer alone reads it
    )
    hub: HubConfig = section(HubConfig)

    @staticmethod
    def settle(config: dict[str, Any]) -> dict[str, Any]:
        """Settle what depends on several keys: :func:`~reproalign.common.precision.settle_precision`."""
        return settle_precision(config)


@dataclass
class MeasuringConfig:
    """How a trainer computes that only measures; the rest of ``trainer.*`` is of trainings."""

    bf16: bool = option(False, help="compute in bfloat16 under autocast")
    fp16: bool = option(False, help="compute in float16 under autocast")


@dataclass
class DataRunConfig(BaseRunConfig):
    """A training run on one data set, or on several that are mixed."""

    data: DataConfig = section(DataConfig)


@dataclass
class RunConfig(DataRunConfig):
    """A run of a policy that is trained by its log-probs."""

    logprobs: LogprobsConfig = section(LogprobsConfig)
