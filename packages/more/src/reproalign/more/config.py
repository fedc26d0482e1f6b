"""MORE's own options. Paper: arXiv 2312.07401; ``ERRATA.md`` says where ``variant=paper`` and ``released`` differ."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from reproalign.common.config import BaseRunConfig, LaunchConfig, ModelConfig
from reproalign.common.judging.config import PairRMConfig
from reproalign.common.judging.endpoint import EndpointConfig


@dataclass
class RewardModelConfig(ModelConfig):
    """A language model with a linear head on its final hidden states, without bias: r = w · pool(h)."""

    dtype: str = "float32"  # of the weights, since 16 bits lose small updates; trainer.bf16 computes in 16 anyway
    pooling: str | None = None  # eos: final token's state | last: the one before it | average | max; null: as trained


@dataclass
class TextConfig:
    """How a dialogue becomes the token ids that a reward model reads: BOS, text, EOS; null: as in its training."""

    layout: str | None = (
        None  # transcript ("\n\nHuman: …\n\nAssistant: …") | chat (chat template); null: or else transcript
    )
    max_length: int | None = None  # tokens, special tokens included; null: or else 512
    truncation_side: str | None = None  # which end of an over-long text is lost: left | right; null: or else left
    padding_side: str | None = None  # right | left; null: or else right


@dataclass
class DomainsConfig(TextConfig):
    """The preference data sets, called domains (released: tasks), and what becomes of their items."""

    domains: list[str] = MISSING  # names, in order; each is a source, or has a file in data.paths
    train_domains: list[str] | None = None  # those trained on, the others are only measured; null: all
    paths: dict[str, str] = field(default_factory=dict)  # domain -> local training rows; replaces the Hub
    eval_paths: dict[str, str] = field(default_factory=dict)  # domain -> local held-out rows
    sources: dict[str, str] = field(default_factory=dict)  # domain -> source, where it is not the domain's name
    first: dict[str, int] = field(default_factory=dict)  # domain -> only the first so many training rows
    eval_first: dict[str, int] = field(default_factory=dict)  # domain -> only the first so many held-out rows
    revisions: dict[str, str] = field(default_factory=dict)  # domain -> revision on the Hub
    task_num: int | None = None  # number of domains, to be checked; null: as many as there are
    eval_fraction: float = 0.0  # hold out this share of the training rows of a domain without held-out rows of its own
    on_error: str = "raise"  # raise | skip
    oasst1_pairs: str = "adjacent"  # replies to one prompt: adjacent ranks | best-vs-rest | all in one item
    resampling: bool = True  # bring every domain to one size, and group one item of each
    resampling_size: int | None = 40_000  # items per domain; null: of the largest domain
    num_proc: int | None = None
    cache_dir: str | None = None  # null: the user's cache folder


@dataclass
class WeightsConfig:
    """How the domains' losses are weighted at every step."""

    rule: str = "min-norm"  # min-norm | uniform (released: reweight=false) | fixed
    fixed: dict[str, float] = field(default_factory=dict)  # domain -> weight, for rule=fixed; they are scaled to sum 1
    normalize: str = "l2"  # of the gradients before the solver: none | l2 | loss | loss+
    alpha: float = 0.99  # momentum m <- (1 - alpha) m + alpha g; 1: none
    solver: str = "auto"  # exact | frank-wolfe (released) | auto: by the variant


@dataclass
class TrainConfig(BaseRunConfig):
    """``more-rm train``: a reward model on several domains."""

    method: str = "more"  # more | multitask (the plain ranking loss on the shuffled mixture)
    variant: str = "paper"  # paper | released
    model: RewardModelConfig = field(default_factory=RewardModelConfig)
    data: DomainsConfig = field(default_factory=DomainsConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    evaluate_before: bool = False  # also measure the starting model (released: eval_at_start)


@dataclass
class EvaluateConfig:
    """``more-rm evaluate``: a reward model on held-out domains; or responses of language models against each other."""

    output_dir: str = MISSING
    seed: int = 42
    variant: str | None = None  # paper | released; null: as trained, or else paper
    model: RewardModelConfig = field(default_factory=RewardModelConfig)
    data: DomainsConfig = field(default_factory=DomainsConfig)
    batch_size: int = 8  # items per forward, or texts
    temperature: bool = False  # also report calibration after temperature scaling, fitted by cross-validation
    responses: list[str] | None = (
        None  # two or more files of `more-rm sample`: compare these instead of reading domains
    )
    judge: EndpointConfig = field(default_factory=EndpointConfig)  # for win rates; no judge.model: by rewards alone
    pairrm: PairRMConfig = field(default_factory=PairRMConfig)  # another judge, with pairrm.model; see docs/judging.md
    template: str | None = None  # of the judge: helpful | harmless | union (null) | a text file; see the README
    confidence: float = 0.95  # of a win rate's interval
    trainer: dict[str, Any] = field(default_factory=dict)  # any field of transformers.TrainingArguments, e.g. bf16


@dataclass
class SampleConfig:
    """``more-rm sample``: several responses of a language model to each prompt."""

    output_dir: str = MISSING
    seed: int = 42
    model: ModelConfig = field(default_factory=ModelConfig)
    prompts: str = MISSING  # rows with `prompt` (text or messages) or `instruction`, or `chosen` (a transcript)
    max_prompts: int | None = None
    layout: str = "chat"  # how the model is asked: chat (its chat template) | transcript ("\n\nHuman: …\n\nAssistant:")
    n: int = 4  # responses per prompt
    max_prompt_length: int = 512  # tokens; a longer prompt loses its beginning
    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    batch_size: int = 8  # responses generated at once; vLLM batches by itself
    backend: str = "auto"  # auto (vllm where it is installed and there is a GPU) | transformers | vllm
    launch: LaunchConfig = field(default_factory=LaunchConfig)  # ddp: each process takes its share of the prompts


@dataclass
class ScoreConfig:
    """``more-rm score``: rewards of sampled responses."""

    output_dir: str = MISSING
    seed: int = 42
    responses: str = MISSING  # file or folder of `more-rm sample`: prompt and responses
    model: RewardModelConfig = field(default_factory=RewardModelConfig)
    variant: str | None = None  # paper | released; null: as trained, or else paper
    text: TextConfig = field(default_factory=TextConfig)
    batch_size: int = 16  # texts per forward


@dataclass
class SelectConfig:
    """``more-rm select``: of the scored responses to a prompt the best, or a preference pair."""

    output_dir: str = MISSING
    seed: int = 42
    scored: str = MISSING  # file or folder of `more-rm score`: prompt, responses, scores
    n: int | None = None  # of the first n responses; null: of all
    keep: str = "best"  # best (for SFT) | pairs (best and worst, for preference optimisation)


@dataclass
class AlignConfig(BaseRunConfig):
    """``more-rm align``: fine-tune a language model on the selected responses (rejection-sampling alignment)."""

    selected: str = MISSING  # file or folder of `more-rm select`
    eval_fraction: float = 0.0  # hold out this share for the loss and the perplexity
    max_length: int = 768  # tokens of prompt and response
    layout: str = "chat"  # chat | transcript
