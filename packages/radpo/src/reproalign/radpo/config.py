"""Ra-DPO's own options. Paper: arXiv 2505.20359; ``ERRATA.md`` says where ``variant=paper`` and ``released`` differ."""

from __future__ import annotations

from dataclasses import dataclass

from reproalign.common.config.data import DataConfig, HeldOutConfig, ReadingConfig
from reproalign.common.config.launch import LaunchConfig
from reproalign.common.config.model import (
    LoadedModelConfig,
    LogprobsConfig,
    ModelConfig,
    ReferenceConfig,
    ReferenceWeightsConfig,
)
from reproalign.common.config.run import MeasuringConfig, RunConfig
from reproalign.common.config.text import RewardTextConfig
from reproalign.common.options import like, one_of, option, output_dir, section, seed, variant
from reproalign.common.options.shared import BACKENDS
from reproalign.radpo.objectives.base import RadpoObjective


@dataclass
class PolicyConfig(ModelConfig):
    """A model, and the weights that training starts from."""

    load_from: str | None = option(
        None, help="weights that training starts from, e.g. the model folder of an SFT run", null="model.name"
    )


@dataclass
class RowTextConfig(RewardTextConfig):
    """How prompts and responses become token ids; which end of a prompt survives, its data set says."""

    system_message: str | None = like(RewardTextConfig, "system_message", None)  # the release adds none
    max_length: int = like(RewardTextConfig, "max_length", 512)
    max_prompt_length: int = option(256, help="of a prompt that does not fit", unit="tokens", at_least=1)


@dataclass
class HeldOutRowsConfig(HeldOutConfig):
    """The data sets of an evaluation; a prompt that two of them have is the later one's."""

    max_eval_rows: int | None = like(HeldOutConfig, "max_eval_rows", 256)


@dataclass
class RowDataConfig(HeldOutRowsConfig, DataConfig):
    """The data sets of a training, likewise."""


@dataclass
class PromptDataConfig(ReadingConfig):
    """Data sets whose prompts, or texts, are used."""

    max_rows: int | None = like(DataConfig, "max_rows", None, help="prompts in all")


@dataclass
class RowSelectionConfig:
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
        None, help="ERRATA Q20: false for tokenizers that say so", null="true", variant="released"
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
    model: PolicyConfig = section(PolicyConfig)
    data: RowDataConfig = section(RowDataConfig)
    text: RowTextConfig = section(RowTextConfig)
    loss: RadpoObjective = one_of("reproalign.radpo.objectives:OBJECTIVES", "ra-dpo", help="the objective")
    rows: RowSelectionConfig = section(RowSelectionConfig)
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
    model: LoadedModelConfig = section(LoadedModelConfig)
    reference: ReferenceWeightsConfig = section(ReferenceWeightsConfig, help="reference.model is needed")
    data: HeldOutRowsConfig = section(HeldOutRowsConfig)
    text: RowTextConfig = section(RowTextConfig)
    clean_up_spaces: bool | None = option(
        None, help="as rows.clean_up_spaces of training", null="true", variant="released"
    )
    loss: RadpoObjective = one_of(
        "reproalign.radpo.objectives:OBJECTIVES",
        "ra-dpo",
        help="the objective; what is not given is as the model was trained, by the run.json beside it",
    )
    logprobs: LogprobsConfig = section(LogprobsConfig)
    batch_size: int = option(4, help="pairs per forward", at_least=1)
    trainer: MeasuringConfig = section(MeasuringConfig)


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
    model: LoadedModelConfig = section(LoadedModelConfig, help="what goes on with the texts")
    classifier: ClassifierConfig = section(ClassifierConfig)
    data: PromptDataConfig = section(PromptDataConfig, help="rows with `text`")
    prompt_tokens: int = option(
        15, help="of a text, as a prompt; shorter texts are one whole", unit="tokens", at_least=1
    )
    max_length: int = option(100, help="tokens of prompt and continuation", unit="tokens", at_least=1)
    n: int = option(5, help="continuations per prompt", at_least=1)
    temperature: float = option(1.0, help="sampling temperature; 0 takes the likeliest token", at_least=0)
    top_k: int = option(50, help="so many of the likeliest tokens are drawn from; 0: all", at_least=0)
    top_p: float = option(
        0.95, help="nucleus sampling: the likeliest tokens of this joint probability are drawn from", above=0, at_most=1
    )
    batch_size: int = option(20, help="continuations at once", at_least=1)
    backend: str = option("auto", help="what generates", choices=BACKENDS)
    launch: LaunchConfig = section(LaunchConfig, help="ddp: each process takes its share of the prompts")


@dataclass
class SampleConfig:
    """``radpo sample``: a model's responses to the prompts of a data set, in AlpacaEval's file format."""

    output_dir: str = output_dir()
    seed: int = seed(0, help="with the four below as the release samples for AlpacaEval")
    model: LoadedModelConfig = section(LoadedModelConfig)
    generator: str | None = option(None, help="name of the model in the file", null="from model.name")
    data: PromptDataConfig = section(PromptDataConfig, help="of each set the held-out prompts, or all")
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
        0.95, help="nucleus sampling: the likeliest tokens of this joint probability are drawn from", above=0, at_most=1
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
