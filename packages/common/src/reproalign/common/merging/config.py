"""The keys of ``reproalign merge``. ``null`` means "not set": the plan's value, else the default that is named."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class MergeConfig:
    """``reproalign merge``: combine the weights of models, or of adapters."""

    output_dir: str = MISSING
    plan: str | None = None  # YAML file of the keys below, or mergekit's; keys of the command line go first
    method: str | None = (
        # linear (default) | slerp | task_arithmetic | ties | dare_linear | dare_ties | fisher | regmean | ensemble (of
        None  # logits: a folder that names the models)
    )
    models: list[str] | None = None  # folders or Hub ids, full models or LoRA adapters; MODEL+ADAPTER folds one in
    base: str | None = None  # θ_0 of task vectors, and what adapters are folded into (default: what they name)
    weights: list[float] | None = None  # one for each model; default: equal (averages) or 1 (task vectors)
    parts: dict[str, Any] = field(
        default_factory=dict
    )  # {layers.0-7: [0.2, 0.8], …}: block: weights, or {weights, density, t}; later win
    normalize: bool | None = (
        None  # divide by the weights' sum; default: true, but task_arithmetic and dare_linear false
    )
    scale: float | None = None  # λ of task vectors; ties and dare_ties default to 1, others need it
    density: float | None = None  # share of each task vector that is kept, 0 to 1; default: ties 0.2, dare_* 0.1
    trim_scope: str | None = (
        None  # ties: tensor (default) | model: largest entries of each tensor, or of the whole model
    )
    t: float | None = None  # slerp: position between the two models, 0 to 1
    statistics: list[str] | None = None  # fisher, regmean: a safetensors file (or folder) for each model
    floor: float | None = None  # fisher: ε > 0 added to the information; default 1e-10
    off_diagonal: float | None = None  # regmean: factor of the Gram matrices' off-diagonal, 0 to 1; default 0.9
    output: str | None = None  # model | adapter; default: adapter if all models are adapters, else model
    space: str | None = None  # adapters as adapters: factor (averages A and B, as DTM's release) | delta (averages B A)
    rank: int | None = None  # adapters in delta space: recompress to this rank; default: exact, the sum of the ranks
    seed: int = 42  # dare_*: of the masks
    dtype: str | None = None  # of the output: auto (default, as the base's tensors) | float32 | bfloat16 | float16
    accumulate: str | None = (
        None  # arithmetic in float32 (default) | float64 | output (linear: the output's dtype, every step rounded)
    )
    embeddings: str | None = (
        None  # unequal numbers of rows: refuse (default) | crop | pad (rows of the first that has them)
    )
    tied: str | None = None  # output head of tied models: keep (default) | untie (write it as a tensor of its own)
    allow: list[str] | None = (
        None  # accept, with a note: tokenizer | chat_template | config | extra_tensors | bin | negative
    )
    files_from: str | None = (
        None  # model whose config, tokenizer and generation files are copied; default: base or first
    )
    shard_size: str = "5GB"  # largest file of the output
    threads: int | None = None  # null: one for each core, 16 at most
    verify: str = "auto"  # headers | load (from_pretrained on the CPU) | auto: load below 4 GB
    resume: str = "auto"  # auto: keep the finished files of an interrupted run | never: refuse its folder
