"""Options of ``ama align sft``, ``ama align dpo`` and ``ama reward``; lengths are in tokens, null means: not set."""

from __future__ import annotations

from dataclasses import dataclass, field

from reproalign.common.config import (
    OVERLONG,
    BaseRunConfig,
    DataConfig,
    LogprobsConfig,
    PairTextConfig,
    ReferenceConfig,
    RewardModelConfig,
    RunConfig,
    TextConfig,
)
from reproalign.common.options import option, section


@dataclass
class PenaltyConfig:
    """What holds the model near θ_0, the model it starts from, while it is fine-tuned (the forgetting baselines)."""

    name: str = "none"  # none | l1, l2 (of the weights) | kd (distillation from θ_0) | kl (KL(π‖π_0), as in PPO)
    weight: float | None = None  # λ, at least 0; 0: the control, the penalty is computed and has no force
    scale: float | None = None  # l1, l2: multiplied with λ; null: paper 1, released 1e5 (l1), 1e9 (l2)
    mean: bool | None = None  # l1, l2: divide by the number of trained weights; null: paper no, released yes
    squared: bool | None = None  # l2: Σ Δ² instead of its root; null: paper no (the norm as printed), released yes
    distance: str | None = None  # kd: mse (Σ_v (π - π_0)²) | kl (KL(π_0‖π)); null: paper mse, released kl
    reduction: str | None = None  # kd, kl: mean over tokens: token | sum over a row's tokens: row; null: paper token


@dataclass
class AveragingConfig:
    """The final model is an average of the weights along the training (SWA; SMA, with its resets Elastic Reset)."""

    name: str = "none"  # none | swa (mean of what is sampled) | ema (exponential moving average, from step `start` on)
    start: int = 0  # optimiser step after which it begins, at least 0
    every: int = 1  # sample the weights every so many steps, at least 1
    decay: float = 0.999  # ema: weight of the average against the sample, in [0, 1)
    reset_every: int | None = None  # ema: every so many steps take the average up and let it begin at θ_0 again


@dataclass
class ReplayConfig:
    """Pre-training texts mixed with the rows (experience replay)."""

    rows: list[str] = field(default_factory=list)  # files of texts; none: no replay
    column: str = "text"  # that holds the text
    ratio: float | None = None  # λ, above 0: so many tokens of texts for each token of the rows


@dataclass
class EarlyStoppingConfig:
    """Stop once the loss on held-out rows falls no more, and keep the best checkpoint."""

    patience: int | None = None  # evaluations without a better loss, at least 1; null: train to the end
    threshold: float = 0.0  # nats per token by which the loss has to be better, at least 0


@dataclass
class SFTConfig(BaseRunConfig):
    """``ama align sft``: supervised fine-tuning, and every forgetting baseline as an option of it."""

    variant: str = "paper"  # paper | released: what null options come to (see docs/aligning.md)
    rows: list[str] = field(
        default_factory=list
    )  # files: messages | conversations (ShareGPT) | instruction, input, output | input, output | text; or LMFlow's
    eval_rows: list[str] = field(default_factory=list)  # held-out files of the same forms
    eval_fraction: float = 0.0  # or hold out this share of the rows, in [0, 1)
    layout: str = "chat"  # chat (template) | transcript (\n\nHuman: …) | lmflow (###Human: …)
    response_separator: str = "space"  # space | none; transcript, lmflow: between the last "Assistant:" and its text
    loss_on: str | None = None  # all tokens | response (of the last turn); null: response, of blocks and texts: all
    packing: str | None = (
        None  # blocks (LMFlow's) | none (a row for each dialogue); null: released or block_size: blocks
    )
    block_size: int | None = None  # of packing=blocks, at least 2; null: the model's longest up to 1024
    group_size: int | None = None  # of packing=blocks: texts joined at a time, at least 1; null: 1000
    max_length: int = 1024  # of packing=none: tokens of a dialogue, at least 2
    normalisation: str | None = None  # of the loss: token_mean | micro_batch_mean; null: paper | released
    penalty: PenaltyConfig = field(default_factory=PenaltyConfig)
    averaging: AveragingConfig = field(default_factory=AveragingConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)
    logprobs: LogprobsConfig = field(default_factory=LogprobsConfig)


@dataclass
class DPOConfig(RunConfig):
    """``ama align dpo``: direct preference optimisation on pairs, the best evaluation's checkpoint kept."""

    layout: str = "lmflow"  # lmflow (###Human: …) | transcript (\n\nHuman: …) | chat (template)
    response_separator: str = "space"  # space | none; transcript, lmflow: between the last "Assistant:" and its text
    text: PairTextConfig = section(PairTextConfig)
    beta: float = 0.1  # above 0: how strongly the policy is held to the reference
    select_best: bool = True  # keep the checkpoint with the lowest loss on held-out pairs; false: the last one
    evaluations_per_epoch: int = 2  # of the loss on held-out pairs, with a checkpoint each; at least 1
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)


@dataclass
class DialoguesTextConfig(TextConfig):
    """How both dialogues of a pair become the token ids that the reward model reads."""

    overlong: str = option("drop", help="what becomes of a pair with a side beyond max_length", choices=OVERLONG)


@dataclass
class RewardConfig(BaseRunConfig):
    """``ama reward``: a Bradley-Terry reward model on preference pairs."""

    model: RewardModelConfig = field(default_factory=RewardModelConfig)  # pooling null: the last token
    data: DataConfig = section(DataConfig)
    text: DialoguesTextConfig = section(DialoguesTextConfig)  # null: lmflow, 512, right end lost, padded right, space
