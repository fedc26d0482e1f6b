r"""What 16-bit numerics do to training: an output head alone, some hundred steps, against float64.

Fixed random hidden states, a head with float32 master weights, and batches of tokens whose loss is
-log π(y) + 0.1 KL(π_ref ‖ π), by AdamW. All ways see the same batches; products have bfloat16 factors. Ways:

    before  logits rounded to bfloat16; sums over the vocabulary under autocast, which rounds what `linalg.vecdot` reads
            and returns; the head's gradient rounded after every chunk and at its end
    after   `chunked_token_statistics` under autocast: float32 sums, one rounding, of the gradient of bfloat16 tensors
    naive   full logits in bfloat16, then log-softmax and autograd in float32

Reported, by way and seed (and their mean and standard error over the seeds):

    bias    of what is computed, in nats: reported minus exact (float64, at the same weights), mean over the tokens of
            the last steps, of log-probs, entropy and KL
    spread  the standard deviation of that difference over the tokens
    drift   how far the weights are from those of the float64 run, over how far that one has come:
            ‖W - W_64‖ / ‖W_64 - W_0‖

    python benchmarks/head_precision.py --output results/benchmarks/head_precision.json
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import measure
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from reproalign.common.logprobs.head_states import HeadStates
from reproalign.common.logprobs.plain import token_statistics
from reproalign.common.logprobs.statistics import chunked_token_statistics

HALF = torch.bfloat16
NAMES = ("logps", "entropy", "forward_kl")
KL_WEIGHT = 0.1
# Hidden states, head weights, reference logits and targets -> statistics by name, and the gradient of the weights.
Way = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[dict[str, Tensor], Tensor]]


@dataclass(frozen=True)
class Size:
    """Of the problem."""

    vocab: int
    hidden: int
    tokens: int
    chunk: int
    steps: int


def loss_of(found: dict[str, Tensor]) -> Tensor:
    """-log π(y) + 0.1 KL, the mean over tokens."""
    return (KL_WEIGHT * found["forward_kl"] - found["logps"]).mean()


def exact(hidden: Tensor, weight: Tensor, reference: Tensor, targets: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Full logits in float64."""
    weight = weight.double().detach().requires_grad_()
    found = token_statistics(hidden @ weight.T, reference, targets)
    (gradient,) = torch.autograd.grad(loss_of(found), weight)
    return {name: found[name].detach() for name in NAMES}, gradient


def naive(hidden: Tensor, weight: Tensor, reference: Tensor, targets: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Full logits in bfloat16."""
    weight = weight.detach().requires_grad_()
    logits = hidden.to(HALF) @ weight.to(HALF).T
    found = token_statistics(logits.float(), reference.float(), targets)
    (gradient,) = torch.autograd.grad(loss_of(found), weight)
    return {name: found[name].detach() for name in NAMES}, gradient


def after(chunk: int) -> Way:
    """What the package does."""

    def way(hidden: Tensor, weight: Tensor, reference: Tensor, targets: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        weight = weight.detach().requires_grad_()
        with torch.autocast(hidden.device.type, dtype=HALF):
            found = chunked_token_statistics(
                HeadStates(hidden.float(), weight),
                HeadStates(logits=reference.float()),
                targets,
                statistics=NAMES,
                chunk_size=chunk,
            )
        (gradient,) = torch.autograd.grad(loss_of(found), weight)
        return {name: found[name].detach() for name in NAMES}, gradient

    return way


def before(chunk: int) -> Way:
    """What it did: logits, sums over the vocabulary and every chunk's share of the gradient rounded to bfloat16."""

    def rounded_dot(left: Tensor, right: Tensor) -> Tensor:
        dot: Tensor = torch.linalg.vecdot(left.to(HALF), right.to(HALF))
        return dot.float()

    def way(hidden: Tensor, weight: Tensor, reference: Tensor, targets: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        states, head = hidden.to(HALF), weight.to(HALF)
        gradient = torch.zeros_like(weight)
        values: dict[str, list[Tensor]] = {name: [] for name in NAMES}
        for start in range(0, len(targets), chunk):
            part = slice(start, start + chunk)
            logps = (states[part] @ head.T).float().log_softmax(1)
            ref_logps = reference[part].float().log_softmax(1)
            policy, p = logps.exp(), ref_logps.exp()
            rows = torch.arange(len(logps), device=logps.device)
            values["logps"].append(logps[rows, targets[part]])
            values["entropy"].append(-rounded_dot(policy, logps))
            values["forward_kl"].append(rounded_dot(p, ref_logps - logps))
            logits_gradient = (1 + KL_WEIGHT) * policy - KL_WEIGHT * p
            logits_gradient[rows, targets[part]] -= 1.0
            gradient += ((logits_gradient / len(targets)).to(HALF).T @ states[part]).float()
        return {name: torch.cat(parts) for name, parts in values.items()}, gradient.to(HALF).float()

    return way


def train(way: Way, size: Size, seed: int, device: str) -> tuple[dict[str, dict[str, float]], Tensor, Tensor]:
    """Return bias and spread by statistic, and the weights at the start and at the end."""
    make = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=make, dtype=torch.float64).to(device)

    start = 3 * random(size.vocab, size.hidden) / math.sqrt(size.hidden)
    teacher = start + 0.3 * random(size.vocab, size.hidden) / math.sqrt(size.hidden)
    wide = torch.float64 if way is exact else torch.float32
    weight = start.to(wide, copy=True).requires_grad_()
    optimizer = torch.optim.AdamW([weight], lr=1e-3, weight_decay=0.0)
    differences: dict[str, list[Tensor]] = {name: [] for name in NAMES}
    for step in range(size.steps):
        hidden = random(size.tokens, size.hidden).to(HALF).double()  # exact in every dtype
        targets = torch.multinomial((hidden @ teacher.T).softmax(1).cpu(), 1, generator=make).squeeze(1).to(device)
        reference = hidden @ start.T
        found, gradient = way(hidden, weight.detach(), reference, targets)
        if step >= size.steps // 2 and way is not exact:
            # The factors' own rounding is no fault of the sums: exact means the same factors.
            there, _ = exact(hidden, weight.detach().to(HALF), reference, targets)
            for name in NAMES:
                differences[name].append(found[name].double() - there[name])
        weight.grad = gradient.to(wide)
        optimizer.step()
    measured = {
        name: {"bias": float(torch.cat(parts).mean()), "spread": float(torch.cat(parts).std())}
        for name, parts in differences.items()
        if parts
    }
    return measured, start, weight.detach().double()


def summary(values: list[float]) -> dict[str, Any]:
    """Mean and standard error over seeds."""
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
    return {"mean": mean, "standard_error": math.sqrt(variance / len(values)), "by_seed": values}


def main() -> None:
    """Train every way with every seed."""
    parser = measure.parser(__doc__.splitlines()[0])
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128, help="per step")
    parser.add_argument("--chunk", type=int, default=16, help="tokens whose logits exist at once")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    size = Size(options.vocab, options.hidden, options.tokens, options.chunk, options.steps)
    ways: dict[str, Way] = {"before": before(size.chunk), "after": after(size.chunk), "naive": naive}
    found: dict[str, dict[str, list[float]]] = {name: {} for name in ways}
    for seed in track(range(options.seeds), description="seeds", console=Console(stderr=True)):
        _, start, ideal = train(exact, size, seed, options.device)
        for name, way in ways.items():
            measured, _, end = train(way, size, seed, options.device)
            drift = ((end - ideal).norm() / (ideal - start).norm()).item()
            numbers = {f"{kind}/{key}": entry[kind] for key, entry in measured.items() for kind in entry}
            for key, value in {**numbers, "drift": drift}.items():
                found[name].setdefault(key, []).append(value)
    results = {name: {key: summary(values) for key, values in entries.items()} for name, entries in found.items()}
    table = Table("mean over seeds (standard error)", *ways, header_style="bold")
    for key in results["before"]:
        table.add_row(key, *(f"{r[key]['mean']:.2e} ({r[key]['standard_error']:.0e})" for r in results.values()))
    Console().print(table)
    measure.write(options, {"size": vars(size), "ways": results})


if __name__ == "__main__":
    main()
