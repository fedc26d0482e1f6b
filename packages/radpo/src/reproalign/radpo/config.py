"""Ra-DPO's own options. Paper: arXiv 2505.20359; ``ERRATA.md`` says where ``variant=paper`` and ``released`` differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from reproalign.common.config import (
    BACKENDS,
    DataConfig,
    LaunchConfig,
    LogprobsConfig,
    ModelConfig,
    ReferenceConfig,
    RunConfig,
)
from reproalign.common.options import like, option, output_dir, section, seed, variant


@dataclass
class PolicyConfig(ModelConfig):
    """A model, and the weights that training starts from."""

    load_from: str | None = option(
        None, help="weights that training starts from, e.g. the model folder of an SFT run", null="model.name"
    )


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
    ppo_epochs: int = option(1, help="released: steps on each batch one after the other", variant="released")
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

    incomplete: str = option(
        "drop", help="an epoch's last batch if it is short", choices={"drop": "released", "keep": ""}
    )
    selection: str = option(
        "all",
        help="unpaired rows: which responses are trained on",
        choices={"all": "", "one": "one response a prompt", "scores": "best and worst in turns"},
    )
    frac_unique_desirable: float = option(
        1.0, help="share of the desirable responses that is trained on", at_least=0, at_most=1
    )
    frac_unique_undesirable: float = option(
        1.0, help="share of the undesirable responses that is trained on", at_least=0, at_most=1
    )
    clean_up_spaces: bool | None = option(
        None, help="released (ERRATA Q20): false for tokenizers that say so", null="true", variant="released"
    )


@dataclass
class ReleasedConfig:
    """The published launch where the one here need not be it: read by variant=released alone."""

    processes: int = option(
        4,
        help="each goes through all rows, and the schedule ticks once for each at a step (ERRATA Q5, Q17)",
        at_least=1,
        variant="released",
    )
    accumulation: int | None = option(
        None,
        help="divides the summed losses of a step",
        at_least=1,
        null="the micro-batches of one here",
        variant="released",
    )


@dataclass
class TrainConfig(RunConfig):
    """``radpo train``: any of the ten losses."""

    seed: int = seed(1)
    variant: str = variant()
    datasets: list[str] | None = option(None, help="several data sets", null="data.source alone")
    model: PolicyConfig = section(PolicyConfig)
    loss: LossConfig = section(LossConfig)
    rows: RowsConfig = section(RowsConfig)
    reference: ReferenceConfig = section(ReferenceConfig)
    released: ReleasedConfig = section(ReleasedConfig)
    warmup_steps: int = option(
        150, help="rate from a tenth to all of it; then a cosine to 0 (released: ticks, ERRATA Q5, Q18)", at_least=0
    )
    evaluate_before: bool = option(True, help="also measure the starting model (released: do_first_eval)")


@dataclass
class EvaluateConfig:
    """``radpo evaluate``: a policy against its reference on held-out pairs."""

    output_dir: str = output_dir()
    seed: int = seed(1)
    variant: str = variant(help="released: how over-long pairs are cut, and the risk measure")
    datasets: list[str] | None = option(None, help="several data sets", null="data.source alone")
    model: ModelConfig = section(ModelConfig)
    reference: ReferenceConfig = section(ReferenceConfig, help="reference.model is needed")
    data: DataConfig = section(DataConfig, help="data.eval_path or data.path: a file of pairs")
    clean_up_spaces: bool | None = option(
        None, help="released: as rows.clean_up_spaces of training", null="true", variant="released"
    )
    loss: LossConfig = section(LossConfig, help="beta of the rewards, and the risk measure")
    logprobs: LogprobsConfig = section(LogprobsConfig)
    batch_size: int = option(4, help="pairs per forward", at_least=1)
    trainer: dict[str, Any] = like(RunConfig, "trainer", {})


@dataclass
class ClassifierConfig:
    """A text classifier whose probability of one label is a score."""

    name: str = option("siebert/sentiment-roberta-large-english", help="Hub id or folder")
    revision: str | None = option(None, help="branch, tag or commit of the Hub repository", null="its default branch")
    label: str = option("POSITIVE", help="out of the id2label of its config.json")
    batch_size: int = option(32, help="texts per forward", at_least=1)


@dataclass
class PairsConfig:
    """``radpo pairs``: continuations of beginnings of texts, scored by a classifier, best against worst."""

    output_dir: str = output_dir()
    seed: int = seed(1)
    model: ModelConfig = section(ModelConfig, help="what goes on with the texts")
    classifier: ClassifierConfig = section(ClassifierConfig)
    data: DataConfig = section(DataConfig, help="rows with `text`: data.train_split, data.max_rows")
    prompt_tokens: int = option(
        15, help="of a text, as a prompt; shorter texts are one whole", unit="tokens", at_least=1
    )
    max_length: int = option(100, help="tokens of prompt and continuation", unit="tokens", at_least=1)
    n: int = option(5, help="continuations per prompt", at_least=1)
    temperature: float = option(1.0, help="sampling temperature; 0 takes the likeliest token", at_least=0)
    top_k: int = option(50, help="so many of the likeliest tokens are drawn from; 0: all", at_least=0)
    top_p: float = option(
        0.95, help="nucleus sampling: the likeliest tokens of this joint probability are drawn from", above=0
    )
    batch_size: int = option(20, help="continuations at once", at_least=1)
    backend: str = option("auto", help="what generates", choices=BACKENDS)
    launch: LaunchConfig = section(LaunchConfig, help="ddp: each process takes its share of the prompts")


@dataclass
class SampleConfig:
    """``radpo sample``: a model's responses to the prompts of a data set, in AlpacaEval's file format."""

    output_dir: str = output_dir()
    seed: int = seed(0, help="with the four below as the release samples for AlpacaEval")
    model: ModelConfig = section(ModelConfig)
    generator: str | None = option(None, help="name of the model in the file", null="from model.name")
    data: DataConfig = section(DataConfig, help="its held-out prompts; data.max_eval_rows: how many rows")
    datasets: list[str] | None = option(None, help="several data sets", null="data.source alone")
    prompts: str | None = option(
        None,
        help="a file with `prompt` (text or messages) or `instruction`; replaces the data sets",
        null="held-out prompts of the data sets",
    )
    max_prompts: int | None = option(None, help="the first so many prompts", at_least=1, null="all")
    max_prompt_length: int = option(256, help="tokens; a longer prompt loses its beginning", unit="tokens", at_least=1)
    max_new_tokens: int = option(2048, help="longest response", unit="tokens", at_least=1)
    temperature: float = option(0.7, help="sampling temperature; 0 takes the likeliest token", at_least=0)
    top_p: float = option(
        0.95, help="nucleus sampling: the likeliest tokens of this joint probability are drawn from", above=0
    )
    stop: list[str] | None = option(
        None, help="strings that end a response", null="what the chat template puts after one"
    )
    response_prefix: str = option(
        "", help='what every response begins with, given to the model: csft\'s control token, "<|good|>"'
    )
    batch_size: int = option(8, help="prompts at once", at_least=1)
    backend: str = option("auto", help="what generates", choices=BACKENDS)
    launch: LaunchConfig = section(LaunchConfig, help="ddp: each process takes its share of the prompts")
