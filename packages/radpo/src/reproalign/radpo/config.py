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
    ReferenceConfig,
    RunConfig,
)
from reproalign.common.options import one_of
from reproalign.radpo.objectives.base import RadpoObjective


@dataclass
class PolicyConfig(ModelConfig):
    """A model, and the weights that training starts from."""

    load_from: str | None = None  # e.g. the model folder of an SFT run; null: model.name


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
    datasets: list[str] | None = None  # several data sets; null: data.source alone
    model: PolicyConfig = field(default_factory=PolicyConfig)
    loss: RadpoObjective = one_of("reproalign.radpo.objectives:OBJECTIVES", "ra-dpo", help="the objective")
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
    datasets: list[str] | None = None  # several data sets; null: data.source alone
    model: ModelConfig = field(default_factory=ModelConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)  # reference.model is needed
    data: DataConfig = field(default_factory=DataConfig)  # data.eval_path or data.path: a file of pairs
    clean_up_spaces: bool | None = None  # variant=released: as rows.clean_up_spaces of training
    loss: RadpoObjective = one_of("reproalign.radpo.objectives:OBJECTIVES", "ra-dpo", help="the objective")
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
    data: DataConfig = field(default_factory=DataConfig)  # rows with `text`: data.train_split, data.max_rows
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
    data: DataConfig = field(default_factory=DataConfig)  # its held-out prompts; data.max_eval_rows: how many rows
    datasets: list[str] | None = None  # several data sets; null: data.source alone
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
