"""Options of ``ama align sft``, ``ama align dpo`` and ``ama reward``; lengths are in tokens, null means: not set."""

from __future__ import annotations

from dataclasses import dataclass

from reproalign.common.config.data import DataConfig
from reproalign.common.config.model import LogprobsConfig, ReferenceConfig, RewardModelConfig
from reproalign.common.config.run import BaseRunConfig, RunConfig
from reproalign.common.config.text import LAYOUTS, OVERLONG, SEPARATORS, PairTextConfig, TextConfig
from reproalign.common.options import option, section, variant


@dataclass
class PenaltyConfig:
    """What holds the model near θ_0, the model it starts from, while it is fine-tuned (the forgetting baselines)."""

    name: str = option(
        "none",
        help="what holds the model near θ_0",
        choices={
            "none": "",
            "l1": "of the weights",
            "l2": "of the weights",
            "kd": "distillation from θ_0",
            "kl": "KL(π‖π_0), as in PPO",
        },
    )
    weight: float | None = option(
        None,
        help="λ; 0: the control, the penalty is computed and has no force",
        at_least=0,
        null="none, which penalty.name=none alone allows",
    )
    scale: float | None = option(
        None, help="l1, l2: multiplied with λ", at_least=0, null="paper: 1, released: 1e5 (l1), 1e9 (l2)"
    )
    mean: bool | None = option(
        None, help="l1, l2: divide by the number of trained weights", null="paper no, released yes"
    )
    squared: bool | None = option(
        None, help="l2: Σ Δ² instead of its root", null="paper no (the norm as printed), released yes"
    )
    distance: str | None = option(
        None,
        help="kd: between π and π_0",
        choices={"mse": "Σ_v (π - π_0)²", "kl": "KL(π_0‖π)"},
        null="paper: mse, released: kl",
    )
    reduction: str | None = option(
        None,
        help="kd, kl: mean over tokens, or sum over a row's tokens",
        choices=("token", "row"),
        null="paper: token, released: row",
    )


@dataclass
class AveragingConfig:
    """The final model is an average of the weights along the training (SWA; SMA, with its resets Elastic Reset)."""

    name: str = option(
        "none",
        help="average the weights along the training",
        choices={
            "none": "",
            "swa": "mean of what is sampled",
            "ema": "exponential moving average, from step `start` on",
        },
    )
    start: int = option(0, help="optimiser step after which it begins", at_least=0)
    every: int = option(1, help="sample the weights every so many steps", at_least=1)
    decay: float = option(0.999, help="ema: weight of the average against the sample", at_least=0, below=1)
    reset_every: int | None = option(
        None,
        help="ema: every so many steps take the average up and let it begin at θ_0 again",
        at_least=1,
        null="never",
    )


@dataclass
class ReplayConfig:
    """Pre-training texts mixed with the rows (experience replay)."""

    rows: list[str] = option([], help="files of texts; none: no replay")
    column: str = option("text", help="that holds the text")
    ratio: float | None = option(
        None, help="λ: so many tokens of texts for each token of the rows", above=0, null="none, without replay.rows"
    )


@dataclass
class EarlyStoppingConfig:
    """Stop once the loss on held-out rows falls no more, and keep the best checkpoint."""

    patience: int | None = option(None, help="evaluations without a better loss", at_least=1, null="train to the end")
    threshold: float = option(0.0, help="by which the loss has to be better", unit="nats per token", at_least=0)


@dataclass
class SFTConfig(BaseRunConfig):
    """``ama align sft``: supervised fine-tuning, and every forgetting baseline as an option of it."""

    variant: str = variant(help="what null options come to (see docs/aligning.md)")
    rows: list[str] = option(
        [],
        help="files of messages, conversations (ShareGPT), instruction, output; input, output; or text; or LMFlow's",
    )
    eval_rows: list[str] = option([], help="held-out files of the same forms")
    eval_fraction: float = option(0.0, help="or hold out this share of the rows", at_least=0, below=1)
    layout: str = option("chat", help="how a dialogue is written", choices=LAYOUTS)
    response_separator: str = option(
        "space", help='transcript, lmflow: between the last "Assistant:" and its text', choices=SEPARATORS
    )
    loss_on: str | None = option(
        None,
        help="tokens that are trained on",
        choices={"all": "", "response": "those of the last turn"},
        null="response; of blocks and texts: all",
    )
    packing: str | None = option(
        None,
        help="how rows are made",
        choices={"blocks": "LMFlow's: texts joined and cut", "none": "a row for each dialogue"},
        null="released, or with block_size: blocks; otherwise none",
    )
    block_size: int | None = option(
        None, help="of packing=blocks", unit="tokens", at_least=2, null="the model's longest, up to 1024"
    )
    group_size: int | None = option(None, help="of packing=blocks: texts joined at a time", at_least=1, null="1000")
    max_length: int = option(1024, help="of a dialogue, with packing=none", unit="tokens", at_least=2)
    normalisation: str | None = option(
        None,
        help="what the loss of a step is the mean of",
        choices=("token_mean", "micro_batch_mean"),
        null="paper: token_mean, released: micro_batch_mean",
    )
    penalty: PenaltyConfig = section(PenaltyConfig)
    averaging: AveragingConfig = section(AveragingConfig)
    replay: ReplayConfig = section(ReplayConfig)
    early_stopping: EarlyStoppingConfig = section(EarlyStoppingConfig)
    logprobs: LogprobsConfig = section(LogprobsConfig)


@dataclass
class DPOConfig(RunConfig):
    """``ama align dpo``: direct preference optimisation on pairs, the best evaluation's checkpoint kept."""

    layout: str = option("lmflow", help="how a dialogue is written", choices=LAYOUTS)
    response_separator: str = option(
        "space", help='transcript, lmflow: between the last "Assistant:" and its text', choices=SEPARATORS
    )
    text: PairTextConfig = section(PairTextConfig)
    beta: float = option(0.1, help="how strongly the policy is held to the reference", above=0)
    select_best: bool = option(
        True, help="keep the checkpoint with the lowest loss on held-out pairs; false: the last one"
    )
    evaluations_per_epoch: int = option(2, help="of the loss on held-out pairs, with a checkpoint each", at_least=1)
    reference: ReferenceConfig = section(ReferenceConfig)


@dataclass
class DialoguesTextConfig(TextConfig):
    """How both dialogues of a pair become the token ids that the reward model reads."""

    overlong: str = option("drop", help="what becomes of a pair with a side beyond max_length", choices=OVERLONG)


@dataclass
class RewardConfig(BaseRunConfig):
    """``ama reward``: a Bradley-Terry reward model on preference pairs."""

    model: RewardModelConfig = section(RewardModelConfig, help="pooling null: the last token")
    data: DataConfig = section(DataConfig)
    text: DialoguesTextConfig = section(
        DialoguesTextConfig, help="null: lmflow, 512, right end lost, padded right, space"
    )
