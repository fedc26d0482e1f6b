"""The keys of ``reproalign merge``. ``null`` means "not set": the plan's value, else the default that is named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reproalign.common.config.model import DTYPES
from reproalign.common.options import option, output_dir, seed

DIFFERENCES = ("tokenizer", "chat_template", "config", "extra_tensors", "bin")
STATISTICS = {"fisher": "mean squared gradients of log p", "gram": "x xᵀ of the inputs of linear layers"}


@dataclass
class MergeConfig:
    """``reproalign merge``: combine the weights of models, or of adapters."""

    output_dir: str = output_dir()
    plan: str | None = option(
        None, help="YAML file of these keys, or mergekit's; keys of the command line go first", null="keys alone"
    )
    method: str | None = option(
        None,
        help="how weights are combined; ensemble: of logits, a folder that names the models",
        choices=(
            "linear",
            "slerp",
            "task_arithmetic",
            "ties",
            "dare_linear",
            "dare_ties",
            "fisher",
            "regmean",
            "ensemble",
        ),
        null="the plan's, or linear",
    )
    models: list[str] | None = option(
        None, help="folders or Hub ids, full models or LoRA adapters; MODEL+ADAPTER folds one in", null="the plan's"
    )
    base: str | None = option(
        None, help="θ_0 of task vectors, and what adapters are folded into", null="what the adapters name"
    )
    weights: list[float] | None = option(None, help="one for each model", null="equal (averages) or 1 (task vectors)")
    parts: dict[str, Any] = option(
        {}, help="{layers.0-7: [0.2, 0.8], …}: weights of a block, or {weights, density, t}; later ones win"
    )
    normalize: bool | None = option(
        None, help="divide by the weights' sum", null="true; task_arithmetic and dare_linear: false"
    )
    scale: float | None = option(None, help="λ of task vectors", null="ties and dare_ties: 1; others need it")
    density: float | None = option(
        None, help="share of each task vector that is kept", above=0, at_most=1, null="ties: 0.2, dare_*: 0.1"
    )
    trim_scope: str | None = option(
        None,
        help="ties: largest entries of what are kept",
        choices={"tensor": "of each tensor", "model": "of the whole model"},
        null="tensor",
    )
    t: float | None = option(
        None, help="slerp: position between the two models", at_least=0, at_most=1, null="the plan's, which slerp needs"
    )
    statistics: list[str] | None = option(
        None, help="fisher, regmean: a safetensors file or folder for each model", null="none"
    )
    floor: float | None = option(None, help="fisher: ε added to the information", above=0, null="1e-10")
    off_diagonal: float | None = option(
        None, help="regmean: factor of the Gram matrices' off-diagonal", at_least=0, at_most=1, null="0.9"
    )
    output: str | None = option(
        None,
        help="what is written",
        choices=("model", "adapter"),
        null="adapter if all models are adapters, otherwise model",
    )
    space: str | None = option(
        None,
        help="how adapters are averaged as adapters",
        choices={"factor": "A and B, as DTM's release", "delta": "B A"},
        null="the plan's, which adapters need",
    )
    rank: int | None = option(
        None, help="adapters in delta space: recompress to this rank", at_least=1, null="exact, the sum of the ranks"
    )
    seed: int = seed(help="dare_*: of the masks")
    dtype: str | None = option(None, help="of the output", choices=DTYPES, null="auto, as the base's tensors")
    accumulate: str | None = option(
        None,
        help="precision of the arithmetic",
        choices={"float32": "", "float64": "", "output": "linear: the output's dtype, every step rounded"},
        null="float32",
    )
    embeddings: str | None = option(
        None,
        help="unequal numbers of rows",
        choices={"refuse": "", "crop": "", "pad": "with rows of the first model that has them"},
        null="refuse",
    )
    tied: str | None = option(
        None,
        help="output head of tied models",
        choices={"keep": "", "untie": "write it as a tensor of its own"},
        null="keep",
    )
    allow: list[str] | None = option(
        None,
        help="differences to accept, with a note",
        choices=(*DIFFERENCES, "negative"),
        null="none",
    )
    files_from: str | None = option(
        None, help="model whose config, tokenizer and generation files are copied", null="base, or the first"
    )
    shard_size: str = option("5GB", help="largest file of the output")
    threads: int | None = option(
        None, help="threads of the arithmetic", at_least=1, null="one for each core, 16 at most"
    )
    verify: str = option(
        "auto",
        help="what is checked of the written files",
        choices={"headers": "", "load": "from_pretrained on the CPU", "auto": "load below 4 GB"},
    )
    resume: str = option(
        "auto",
        help="an interrupted run",
        choices={"auto": "keep its finished files", "never": "refuse its folder"},
    )
