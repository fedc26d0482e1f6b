"""MMPO's own options. Paper: arXiv 2410.03145; ``ERRATA.md`` says where ``variant=paper`` and ``released`` differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reproalign.common.config.data import HeldOutConfig
from reproalign.common.config.model import LoadedModelConfig, LogprobsConfig, ReferenceConfig, ReferenceWeightsConfig
from reproalign.common.config.run import SFT, DataRunConfig, MeasuringConfig, RunConfig
from reproalign.common.config.text import DialogueTextConfig, PairTextConfig, RewardTextConfig
from reproalign.common.evaluation.calibration import BINNINGS
from reproalign.common.options import like, one_of, option, output_dir, section, seed, variant
from reproalign.mmpo.objective import MarginObjective


@dataclass
class TargetConfig:
    """From two quality scores to the target probability that the chosen response is preferred."""

    gamma: float | None = option(
        help="margin scale (released: bt_beta); published: 0.3 to 2.2 for policies, 0.5 for reward models",
        at_least=0,
        null="hard labels, i.e. plain DPO or a plain Bradley-Terry reward model",
    )
    margin_transform: str = option(
        "raw",
        help="what a margin is; the release uses raw differences",
        choices={"raw": "difference of the scores", "log-ratio": "extension", "rank": "extension"},
        read_with=("gamma", "additive_margin"),
    )
    margin_scale: float = option(
        1.0, help="margins are divided by this first", above=0, read_with=("gamma", "additive_margin")
    )
    soft_labels: str | None = option(
        None, help="JSON list of {prompt_id, p_chosen} that replaces the computed targets", null="targets are computed"
    )
    reflect_soft_labels: bool = option(
        True,
        help="p < 1/2: swap the texts and use 1 - p (released); false: keep both as given",
        read_with=("soft_labels",),
    )
    filter_threshold: float | None = option(
        None,
        help="drop pairs with margin <= threshold (documented, never done by the release)",
        null="none are dropped",
    )


@dataclass
class EvaluateTargetConfig(TargetConfig):
    """The targets that a model is compared with."""

    gamma: Any = option(
        "auto",
        help="margin scale; auto: margins as the model was trained on, by the run.json beside it, else hard labels",
        types=(float, str),
        choices=("auto",),
        at_least=0,
        null="hard labels",
    )


@dataclass
class RowRulesConfig:
    """Which rows are trained on, and in which order the rules meet them."""

    shuffle_seed: int | None = seed(
        None, help="shuffle the rows of both splits first (released: 42)", null="the files' order"
    )
    decontaminate: str | None = option(
        None,
        help="drop rows that hold a prompt of HumanEval",
        choices={"humaneval": "read from the Hub"},
        also="a local JSON-lines file of HumanEval rows",
        null="none are dropped",
    )
    decontaminate_fix_whitelist: bool = option(
        False, help="true: fix the broken fourth entry (ERRATA Q27)", read_with=("decontaminate",)
    )


@dataclass
class PairRulesConfig(RowRulesConfig):
    """Which pairs are trained on."""

    sampling: str = option(
        "none", help="draw pairs from bins of the score margin", choices=("none", "uniform", "proportional")
    )
    sampling_size: int | None = option(
        None, help="pairs that are drawn", at_least=1, null="none are drawn", read_with=("sampling",)
    )
    sampling_edges: list[float] | None = option(
        None, help="edges of the bins, increasing", null="sampling_bins quantile bins", read_with=("sampling",)
    )
    sampling_bins: int = option(10, help="number of quantile bins", at_least=1, read_with=("sampling",))
    drop_ties: bool = option(False, help='released: a tie counts as "B chosen" with target 1/2')
    cap_per_prompt: int | None = option(None, help="keep so many pairs of a prompt (SHP: 5)", at_least=1, null="all")
    cap_mode: str = option(
        "first",
        help="which pairs of a prompt are kept",
        choices={"first": "released: after the shuffle", "random": ""},
        read_with=("cap_per_prompt",),
    )
    cap_splits: str = option(
        "both", help="which splits are capped", choices={"both": "released", "train": ""}, read_with=("cap_per_prompt",)
    )


@dataclass
class PreferenceConfig(RunConfig):
    """``mmpo train``: MMPO on DPO."""

    variant: str = variant()
    text: PairTextConfig = section(PairTextConfig)
    target: TargetConfig = section(TargetConfig)
    pairs: PairRulesConfig = section(PairRulesConfig)
    loss: MarginObjective = one_of("reproalign.mmpo.objective:OBJECTIVES", "sigmoid", help="the objective")
    reference: ReferenceConfig = section(ReferenceConfig)
    pad_to_multiple_of: int | None = option(
        None, help="batches are padded to a multiple of so many tokens", at_least=1, null="to the longest"
    )
    evaluate_before: bool = option(False, help="also evaluate the starting model, for a before/after table")


@dataclass
class RewardConfig(DataRunConfig):
    """``mmpo reward``: a Bradley-Terry reward model on soft targets."""

    variant: str = variant(help="released: batch-mean targets by broadcasting, ERRATA Q5")
    text: RewardTextConfig = section(RewardTextConfig)
    target: TargetConfig = section(TargetConfig)
    pairs: PairRulesConfig = section(PairRulesConfig)
    additive_margin: bool = option(
        False, help="-log sigma(d - m) with the margin m (Llama 2) in place of the soft targets"
    )
    pool: str = option(
        "last",
        help="which token's state is read",
        choices={"last": "the last one that is no padding", "first_pad": "as transformers 4.38"},
    )
    pad_to_multiple_of: int | None = option(
        None, help="batches are padded to a multiple of so many tokens", at_least=1, null="to the longest row"
    )
    evaluate_before: bool = option(False, help="also measure the starting model")


@dataclass
class SFTRunConfig(DataRunConfig):
    """``mmpo sft``: fine-tuning with ``trl.SFTTrainer``; ``trainer.*`` reaches every ``trl.SFTConfig`` field."""

    variant: str = variant(help="released: epochs as transformers 4.38 counts them, ERRATA M5")
    text: DialogueTextConfig = section(DialogueTextConfig)
    rows: RowRulesConfig = section(RowRulesConfig)
    trainer: dict[str, Any] = like(
        RunConfig, "trainer", {}, help="any field of trl.SFTConfig", fields_of="trl:SFTConfig", fields=SFT
    )


@dataclass
class EvaluateConfig:
    """``mmpo evaluate``: a policy or a reward model on held-out preferences, and on RewardBench-format files."""

    output_dir: str = output_dir()
    seed: int = seed()
    kind: str = option(
        "auto", help="what the model is", choices={"auto": "by its architecture", "policy": "", "reward": ""}
    )
    variant: str = variant()
    model: LoadedModelConfig = section(LoadedModelConfig)
    reference: ReferenceWeightsConfig = section(ReferenceWeightsConfig, help="of a policy")
    reference_free: str | None = option(
        None,
        help="a policy without reference.model: how its token log-probs make a score",
        choices=("sum", "avg", "norm"),
        null="the reference is needed",
    )
    data: HeldOutConfig = section(HeldOutConfig)
    text: PairTextConfig = section(PairTextConfig, help="of a reward model: unless it says itself how it was trained")
    logprobs: LogprobsConfig = section(LogprobsConfig)
    target: EvaluateTargetConfig = section(EvaluateTargetConfig, help="soft targets to compare with")
    beta: float | None = option(
        None,
        help="a policy's rewards are beta (log pi - log pi_ref); in training: loss.beta",
        above=0,
        null="as the model was trained, by the run.json beside it, else 0.01",
    )
    n_bins: int = option(10, help="bins of the calibration error", at_least=1)
    binning: str = option(
        "uniform",
        help="bins of the calibration error",
        choices=BINNINGS,
    )
    rewardbench: str | None = option(
        None, help="a RewardBench-format file: prompt, chosen, rejected, subset; prior sets as subsets", null="none"
    )
    batch_size: int = option(4, help="pairs per forward", at_least=1)
    trainer: MeasuringConfig = section(MeasuringConfig)
