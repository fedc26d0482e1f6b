"""Ra-DPO's own options. Paper: arXiv 2505.20359; ``ERRATA.md`` says where ``variant=paper`` and ``released`` differ."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from reproalign.common.config import (
    DataConfig,
    LaunchConfig,
    LogprobsConfig,
    ModelConfig,
    ReadingConfig,
    ReferenceConfig,
    RewardTextConfig,
    RunConfig,
)
from reproalign.common.options import like, option, section


@dataclass
class PolicyConfig(ModelConfig):
    """A model, and the weights that training starts from."""

    load_from: str | None = None  # e.g. the model folder of an SFT run; null: model.name


@dataclass
class RowTextConfig(RewardTextConfig):
    """How prompts and responses become token ids; which end of a prompt survives, its data set says."""

    system_message: str | None = like(RewardTextConfig, "system_message", None)  # the release adds none
    max_length: int = like(RewardTextConfig, "max_length", 512)
    max_prompt_length: int = option(256, help="of a prompt that does not fit", unit="tokens", at_least=1)


@dataclass
class RowDataConfig(DataConfig):
    """The data sets of a run; a prompt that two of them have is the later one's."""

    max_eval_rows: int | None = like(DataConfig, "max_eval_rows", 256)


@dataclass
class PromptDataConfig(ReadingConfig):
    """Data sets whose prompts, or texts, are used."""

    max_rows: int | None = like(DataConfig, "max_rows", None, help="prompts in all")


@dataclass
class LossConfig:
    """The objective; `loss=NAME` sets the name and its published parameters. Only those of the name are read."""

    name: str = MISSING  # sft | csft | dpo | cdpo | slic | kto | kto-zero | ppo | tdpo | ra-dpo
    beta: float = 0.1  # temperature; slic: margin in nats
    epsilon: float = 0.2  # cdpo: probability of a flipped label
    lambda_coef: float = 0.1  # slic: weight of the likelihood term
    alpha: float = 0.5  # tdpo, ra-dpo, second form: weight of the token-level term
    second_form: bool = False  # TDPO2 and Ra-DPO2 (released: if_tdpo2, if_ra_dpo2)
    measure: str | None = None  # ra-dpo: a name of risk.MEASURES; null: released_tail if variant=released, else cvar
    confidence_level: float = 0.95  # cvar, released_tail: mass (share of entries) that is retained, 1 is TDPO
    coefficient: float = 5.0  # μ of entropic and entropic_scaled, κ of mean_semideviation
    is_split_risk_ratio: bool = True  # released_tail: a quantile for each half of the vocabulary (ERRATA Q1)
    is_cal_risk_distribution_logps: bool = False  # released_tail: quantiles in place of log-probs (ERRATA Q2)
    desirable_weight: float = 1.0  # kto, kto-zero
    undesirable_weight: float = 1.0
    tokenwise_KL: bool = False  # noqa: N815 - the release's name; kto: reference point per example, the largest log-ratio of a token
    cliprange: float = 0.5  # ppo: probability ratios are clipped to [cliprange, 1 / cliprange]
    gamma: float = 0.99  # ppo: discount
    lam: float = 0.95  # ppo: λ of GAE
    critic_coef: float = 0.01
    KL_coef: float = 0.1
    ppo_epochs: int = 1  # variant=released: steps on each batch one after the other
    v_head_max_grad_norm: float = 0.1
    chosen_control_token: str = "<|good|>"  # csft
    rejected_control_token: str = "<|bad|>"


def measure_name(loss: LossConfig, variant: str) -> str | None:
    """Return the name of ``ra-dpo``'s measure: ``loss.measure``, and without one what ``variant`` has."""
    if loss.name != "ra-dpo":
        return None
    return loss.measure or ("released_tail" if variant == "released" else "cvar")


@dataclass
class RowsConfig:
    """Which responses are trained on, and in which order."""

    incomplete: str = "drop"  # drop (released) | keep an epoch's last batch if it is short
    selection: str = "all"  # unpaired: all | one response a prompt | scores: best and worst in turns
    frac_unique_desirable: float = 1.0
    frac_unique_undesirable: float = 1.0
    clean_up_spaces: bool | None = None  # variant=released (ERRATA Q20): false for tokenizers that say so; null: true


@dataclass
class ReleasedConfig:
    """The published launch where the one here need not be it: read by variant=released alone."""

    processes: int = 4  # each goes through all rows, and the schedule ticks once for each at a step (ERRATA Q5, Q17)
    accumulation: int | None = None  # divides the summed losses of a step; null: the micro-batches of one here


@dataclass
class TrainConfig(RunConfig):
    """``radpo train``: any of the ten losses."""

    seed: int = 1
    variant: str = "paper"  # paper | released
    model: PolicyConfig = field(default_factory=PolicyConfig)
    data: RowDataConfig = section(RowDataConfig)
    text: RowTextConfig = section(RowTextConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    rows: RowsConfig = field(default_factory=RowsConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    released: ReleasedConfig = field(default_factory=ReleasedConfig)
    warmup_steps: int = 150  # rate from a tenth to all of it; then a cosine to 0 (released: ticks, ERRATA Q5, Q18)
    evaluate_before: bool = True  # released: do_first_eval


@dataclass
class EvaluateConfig:
    """``radpo evaluate``: a policy against its reference on held-out pairs."""

    output_dir: str = MISSING
    seed: int = 1
    variant: str = "paper"  # paper | released: how over-long pairs are cut, and the risk measure
    model: ModelConfig = field(default_factory=ModelConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)  # reference.model is needed
    data: RowDataConfig = section(RowDataConfig)
    text: RowTextConfig = section(RowTextConfig)
    clean_up_spaces: bool | None = None  # variant=released: as rows.clean_up_spaces of training
    loss: LossConfig = field(default_factory=LossConfig)  # beta of the rewards, and the risk measure
    logprobs: LogprobsConfig = field(default_factory=LogprobsConfig)
    batch_size: int = 4  # pairs per forward
    trainer: dict[str, Any] = field(default_factory=dict)  # any field of transformers.TrainingArguments, e.g. bf16


@dataclass
class ClassifierConfig:
    """A text classifier whose probability of one label is a score."""

    name: str = "siebert/sentiment-roberta-large-english"  # Hub id or folder
    revision: str | None = None
    label: str = "POSITIVE"  # out of the id2label of its config.json
    batch_size: int = 32  # texts per forward


@dataclass
class PairsConfig:
    """``radpo pairs``: continuations of beginnings of texts, scored by a classifier, best against worst."""

    output_dir: str = MISSING
    seed: int = 1
    model: ModelConfig = field(default_factory=ModelConfig)  # what goes on with the texts
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    data: PromptDataConfig = section(PromptDataConfig)  # rows with `text`
    prompt_tokens: int = 15  # of a text, as a prompt; shorter texts are one whole
    max_length: int = 100  # tokens of prompt and continuation
    n: int = 5  # continuations per prompt
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 0.95
    batch_size: int = 20  # continuations at once
    backend: str = "auto"  # auto (vllm where it is installed and there is a GPU) | transformers | vllm
    launch: LaunchConfig = field(default_factory=LaunchConfig)  # ddp: each process takes its share of the prompts


@dataclass
class SampleConfig:
    """``radpo sample``: a model's responses to the prompts of a data set, in AlpacaEval's file format."""

    output_dir: str = MISSING
    seed: int = 0  # with the four below as the release samples for AlpacaEval
    model: ModelConfig = field(default_factory=ModelConfig)
    generator: str | None = None  # name of the model in the file; null: from model.name
    data: PromptDataConfig = section(PromptDataConfig)  # of each set the held-out prompts, or all
    prompts: str | None = None  # a file with `prompt` (text or messages) or `instruction`; replaces the data sets
    max_prompts: int | None = None
    max_prompt_length: int = 256  # tokens; a longer prompt loses its beginning
    max_new_tokens: int = 2048
    temperature: float = 0.7  # 0: the likeliest token
    top_p: float = 0.95
    stop: list[str] | None = None  # strings that end a response; null: what the chat template puts after one
    response_prefix: str = ""  # what every response begins with, given to the model: csft's control token, "<|good|>"
    batch_size: int = 8  # prompts at once
    backend: str = "auto"  # auto (vllm where it is installed and there is a GPU) | transformers | vllm
    launch: LaunchConfig = field(default_factory=LaunchConfig)  # ddp: each process takes its share of the prompts
