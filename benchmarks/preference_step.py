"""One optimiser step of preference training: ours against TRL's and against our own DPO, side by side in one run.

All take the same small Llama (49,152-token vocabulary, tied embeddings), the same reference, the same batch of token
ids and AdamW. A step is: policy and reference log-probs, loss, backward, optimiser step, gradients freed. How time and
memory (activations, gradients and optimiser temporaries) are measured: `measure.py`. Before every length all models
get their first weights back, and losses that are the same must agree (see `check_losses`). Parts of the output:

    rows     DPO. ours: MMPO's trainer without margins; trl: `trl.DPOTrainer`
    methods  trainers of `reproalign.radpo` (--methods): time and memory as multiples of its DPO, whose loss is compared
             with TRL's. KTO's examples are the pairs' responses
    kto      with kto among them. ours: as there; trl: `trl.KTOTrainer`

TRL runs as it comes: this version always computes log-probs in chunks (there is no option for it), and besides them
the entropy and mean logits (DPO: also top-1 hits) that it logs; their cost is part of its step.
Not measured: data loading, logging, several processes.

    python benchmarks/preference_step.py --tokens 256 512 1024 2048 --output results/benchmarks/preference_step.json
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import measure
import steps
import torch
from datasets import Dataset
from rich.console import Console
from torch import Tensor, nn
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from reproalign.common.models.tiny_tokenizers import tiny_tokenizer
from reproalign.mmpo import MMPO


@dataclass(frozen=True)
class Part:
    """What is measured together."""

    title: str
    ways: Mapping[str, str]  # name in the output -> step
    same: tuple[str, str]  # two steps that must have one loss: ours and TRL's
    base: str | None = None  # what ratios are to; None: they are of the first to the others


# Rows that TRL's trainers want to be made with; they are not trained on.
PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
EXAMPLES = [{"prompt": "a", "completion": "b", "label": True}, {"prompt": "a", "completion": "c", "label": False}]


def trl_step(
    trainer: Any, config: Any, rows: list[dict[str, Any]], arguments: argparse.Namespace, folder: str
) -> steps.Made:
    """TRL's trainer with its defaults, without activation checkpointing, as ours."""
    settings = config(
        output_dir=folder, beta=steps.BETA, bf16=False, use_cpu=arguments.device == "cpu", report_to=[],
        gradient_checkpointing=False, max_length=None,
    )  # fmt: skip
    made = trainer(
        model=steps.policy(arguments), ref_model=steps.reference(arguments), args=settings,
        train_dataset=Dataset.from_list(rows), processing_class=tiny_tokenizer(),
    )  # fmt: skip
    return steps.optimiser_step(made)


def restore(policies: Iterable[nn.Module], weights: Iterable[Tensor]) -> None:
    """Give every policy the same weights."""
    with torch.no_grad():
        for values in zip(weights, *(policy.parameters() for policy in policies), strict=True):
            for parameter in values[1:]:
                parameter.copy_(values[0])


def check_losses(ours: float, trl: float, tokens: int, dtype: str) -> float:
    """Both must compute the same; returns their relative difference.

    Relative tolerances: 1e-4 in float32 up to 256 tokens: the loss is a small difference of row sums, and float32 holds
    one of 256 log-probs to 2e-4 nats. Beyond, 1e-3: the sums grow, and the two add log-probs in different orders. In
    bfloat16 2e-2.
    """
    tolerance = 2e-2 if dtype == "bfloat16" else 1e-4 if tokens <= 256 else 1e-3
    difference = abs(ours - trl) / abs(trl)
    if not difference <= tolerance:
        raise SystemExit(
            f"{tokens} tokens: losses differ by {difference:.1e}, more than {tolerance}: {ours}, TRL {trl}"
        )
    return difference


def main() -> None:
    """Measure, print tables, write JSON."""
    parser = measure.parser("One preference step, ours against TRL's and against our own DPO.")
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--prompt", type=int, help="tokens of the prompt (default: a quarter)")
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    default = ["dpo", "tdpo", "ra-dpo", "kto"]
    parser.add_argument(
        "--methods",
        nargs="*",
        choices=steps.METHODS,
        default=default,
        help=f"beside dpo (default: {' '.join(default)})",
    )
    arguments = parser.parse_args()
    methods = list(dict.fromkeys(["dpo", *arguments.methods])) if arguments.methods else []
    parts = {"rows": Part("DPO; ratios: ours to TRL's", {"ours": "ours", "trl": "trl"}, ("ours", "trl"))}
    if methods:
        ways = {method: method for method in methods}
        parts["methods"] = Part("ours; ratios: to DPO", ways, ("dpo", "trl"), base="dpo")
    if "kto" in methods:
        ways = {"ours": "kto", "trl": "trl-kto"}
        parts["kto"] = Part("KTO; ratios: ours to TRL's", ways, ("kto", "trl-kto"))
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in parts}
    with tempfile.TemporaryDirectory() as folder:
        made = {
            "ours": steps.our_step(MMPO(beta=steps.BETA), arguments, folder),
            "trl": trl_step(DPOTrainer, DPOConfig, [PAIR], arguments, folder),
            **{method: steps.method_step(method, arguments, folder) for method in methods},
        }
        if "kto" in methods:
            made["trl-kto"] = trl_step(KTOTrainer, KTOConfig, EXAMPLES, arguments, folder)
        method_of = {"ours": "dpo", "trl": "dpo", "trl-kto": "kto"}
        policies = [policy for _, policy in made.values()]
        first = [parameter.detach().clone() for parameter in policies[0].parameters()]
        for tokens in arguments.tokens:
            pairs = steps.batch(tokens, arguments)
            restore(policies, first)
            runs = {
                name: partial(step, steps.rows_for(method_of.get(name, name), pairs))
                for name, (step, _) in made.items()
            }
            losses = {name: run() for name, run in runs.items()}  # also the warm-up
            for name, part in parts.items():
                ours, trl = (losses[step] for step in part.same)
                row = {
                    "tokens": tokens,
                    "losses": {way: losses[step] for way, step in part.ways.items()},
                    "loss_relative_difference": check_losses(ours, trl, tokens, arguments.dtype),
                }
                timed = {way: runs[step] for way, step in part.ways.items()}
                label = f"{name}, {tokens} tokens"
                row |= measure.measurements(timed, arguments.repeats, arguments.device, label, part.base)
                rows[name].append(row)
    for name, part in parts.items():
        Console().print(measure.table(part.title, rows[name], "tokens"))
    results = {name: found if name == "rows" else {"rows": found} for name, found in rows.items()}
    measure.write(arguments, results, "transformers", "trl")


if __name__ == "__main__":
    main()
