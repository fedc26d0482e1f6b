"""MMPO's own options. Paper: arXiv 2410.03145; ``ERRATA.md`` says where ``variant=paper`` and ``released`` differ."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from reproalign.common.config import (
    DataConfig,
    DialogueTextConfig,
    LogprobsConfig,
    ModelConfig,
    PairTextConfig,
    ReferenceConfig,
    RewardTextConfig,
    RunConfig,
)
from reproalign.common.options import section
from reproalign.common.verbs.mt_bench_config import AnsweringModelConfig


@dataclass
class TargetConfig:
    """From two quality scores to the target probability that the chosen response is preferred."""

    gamma: float | None = None  # margin scale (released: bt_beta); null: hard labels, i.e. plain DPO / BT reward model
    margin_transform: str = "raw"  # raw | log-ratio | rank (extensions; the release uses raw differences)
    margin_scale: float = 1.0  # margins are divided by this first
    soft_labels: str | None = None  # JSON list of {prompt_id, p_chosen} that replaces the computed targets
    reflect_soft_labels: bool = True  # p < 1/2: swap the texts and use 1 - p (released); false: keep both as given
    filter_threshold: float | None = None  # drop pairs with margin <= threshold (documented, never done by the release)


@dataclass
class RowRulesConfig:
    """Which rows are trained on, and in which order the rules meet them."""

    shuffle_seed: int | None = None  # shuffle the rows of both splits first (released: 42); null: the files' order
    decontaminate: str | None = None  # null | humaneval (Hub) | a local JSON-lines file of HumanEval rows
    decontaminate_fix_whitelist: bool = False  # true: fix the broken fourth entry (ERRATA Q27)


@dataclass
class PairRulesConfig(RowRulesConfig):
    """Which pairs are trained on."""

    sampling: str = "none"  # none | uniform | proportional over score-margin bins
    sampling_size: int | None = None
    sampling_edges: list[float] | None = None  # bin edges; null: sampling_bins quantile bins
    sampling_bins: int = 10
    drop_ties: bool = False  # released: a tie counts as "B chosen" with target 1/2
    cap_per_prompt: int | None = None  # SHP: 5
    cap_mode: str = "first"  # first (released: after the shuffle) | random
    cap_splits: str = "both"  # both (released) | train


@dataclass
class LossConfig:
    """The pairwise objective."""

    type: str = "sigmoid"  # sigmoid | hinge | ipo | kto_pair
    beta: float = 0.01  # DPO temperature
    label_smoothing: float = 0.0  # paper: q' = (1-eps) q + eps (1-q); released: ignored (ERRATA Q8)
    soft: bool = False  # hinge/ipo/kto_pair: q l(h) + (1-q) l(-h) instead of ignoring the margin (ERRATA Q10)
    average_log_prob: bool = False  # mean instead of summed log-probs (newer TRL's IPO)
    reference_free: bool = False  # reference log-ratio 0


@dataclass
class PreferenceConfig(RunConfig):
    """``mmpo train``: MMPO on DPO."""

    variant: str = "paper"  # paper | released
    text: PairTextConfig = section(PairTextConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    pairs: PairRulesConfig = field(default_factory=PairRulesConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    pad_to_multiple_of: int | None = None  # batches are padded to a multiple of so many tokens; null: to the longest
    evaluate_before: bool = False  # also evaluate the starting model, for a before/after table


@dataclass
class RewardConfig(RunConfig):
    """``mmpo reward``: a Bradley-Terry reward model on soft targets."""

    variant: str = "paper"  # paper | released (batch-mean targets by broadcasting, ERRATA Q5)
    text: RewardTextConfig = section(RewardTextConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    pairs: PairRulesConfig = field(default_factory=PairRulesConfig)
    additive_margin: bool = False  # -log sigma(d - m) with the margin m (Llama 2) in place of the soft targets
    pool: str = "last"  # last non-pad token | first_pad (transformers 4.38)
    pad_to_multiple_of: int | None = None
    evaluate_before: bool = False


@dataclass
class SFTRunConfig(RunConfig):
    """``mmpo sft``: fine-tuning with ``trl.SFTTrainer``; ``trainer.*`` reaches every ``trl.SFTConfig`` field."""

    variant: str = "paper"  # paper | released (epochs as transformers 4.38 counts them, ERRATA M5)
    text: DialogueTextConfig = section(DialogueTextConfig)
    rows: RowRulesConfig = field(default_factory=RowRulesConfig)


@dataclass
class EvaluateConfig:
    """``mmpo evaluate``: a policy or a reward model on held-out preferences, and on RewardBench-format files."""

    output_dir: str = MISSING
    seed: int = 42
    kind: str = "auto"  # auto (by the model's architecture) | policy | reward
    variant: str = "paper"  # paper | released
    model: ModelConfig = field(default_factory=ModelConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)  # of a policy
    reference_free: str | None = None  # a policy without reference.model: sum | avg | norm of its token log-probs
    data: DataConfig = section(DataConfig)
    text: PairTextConfig = section(PairTextConfig)  # of a reward model: unless it says itself how it was trained
    logprobs: LogprobsConfig = field(default_factory=LogprobsConfig)
    target: TargetConfig = field(default_factory=TargetConfig)  # soft targets to compare with
    beta: float = 0.01  # a policy's rewards are beta (log pi - log pi_ref)
    n_bins: int = 10  # of the calibration error
    binning: str = "uniform"  # uniform | quantile (equal mass)
    rewardbench: str | None = None  # a RewardBench-format file: prompt, chosen, rejected, subset; prior sets as subsets
    batch_size: int = 4  # pairs per forward
    trainer: dict[str, Any] = field(default_factory=dict)  # any field of transformers.TrainingArguments, e.g. bf16


@dataclass
class BestOfNConfig:
    """``mmpo best-of-n``: sample candidates from a policy, score them with a reward model, keep the best."""

    output_dir: str = MISSING
    seed: int = 42  # questions: of candidate 0, a candidate's is this plus its index (FastChat: 0)
    prompts: str | None = None  # JSON lines with `prompt` (text or messages), or the rows of a data source: one turn
    questions: str | None = None  # in place of prompts: FastChat's question file, two turns, temperature by category
    candidates: str | None = None  # of the questions, in place of sampling: FastChat's answer file with n choices
    policy: AnsweringModelConfig = field(default_factory=AnsweringModelConfig)
    reward: ModelConfig = field(default_factory=lambda: ModelConfig(dtype="float32"))
    gold: str | None = None  # a second reward model that judges the selection
    rendering: str = "training"  # training (as policies and reward models were trained) | released (MMPO's authors')
    n: Any = 16  # candidates per prompt; or several, as [16,64,256]: each the first n of one list
    max_prompts: int | None = None
    max_new_tokens: int = 256  # of each turn
    temperature: float | None = None  # of prompts, above 0; null: 1
    temperatures: dict[str, float] = field(default_factory=dict)  # of questions, by category; others: FastChat's
    top_p: float = 1.0
    top_k: int = 0  # so many of the likeliest tokens are drawn from; 0: all (FastChat's own runs: 50)
    batch_size: int = 8  # candidates generated or scored at once
    backend: str = "auto"  # auto (vllm where it is installed and there is a GPU) | transformers | vllm
    max_length: int | None = None  # tokens of a scored dialogue; null: as the reward model was trained, else 2048
