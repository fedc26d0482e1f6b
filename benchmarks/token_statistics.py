r"""Token statistics against a reference, forward and backward, from hidden states: ours, in chunks, against peers.

One micro-batch of completion tokens: random hidden states, a random head whose logits have a standard deviation of 3,
and a reference near by. All ways compute the same values and the gradients of hidden states and head. Parts:

    statistics  logps, ref_logps, forward_kl and risk (CVaR at 0.95).
                ours    `chunked_token_statistics` with `reproalign.radpo.risk`
                oracle  `plain.token_statistics` on full logits, the CVaR by a full sort. It computes reverse KL and
                        entropy besides
                direct  as the oracle, but no more than the four that are wanted: the one to be measured against
    logps       a DPO loss. ours: `chunked_token_logps`; liger: `LigerFusedLinearDPOLoss` (compiled on a GPU only, as
                its compilation is made for them)
    step        with --gpu-step: a whole optimiser step of a small Llama by `reproalign.radpo`'s trainers, Ra-DPO
                against DPO

Ours must agree with every peer within TOLERANCE, or the script stops. A way whose estimated memory is above
--skip-above is not run. Memory is above the inputs, with the gradients in it: `gradient_bytes` of it is what any way
must return. How time and memory grow is the slope of log(time) or log(memory) over log(tokens) or log(vocabulary).

    python benchmarks/token_statistics.py --vocab 49152 --tokens 1024 --output results/benchmarks/token_statistics.json
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import measure
import psutil
import steps
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import logsigmoid

from reproalign.common.logprobs.chunked import chunked_token_logps
from reproalign.common.logprobs.head_states import HeadStates
from reproalign.common.logprobs.plain import token_statistics
from reproalign.common.logprobs.statistics import chunked_token_statistics
from reproalign.radpo import CVaR

try:
    from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss
except ImportError as error:
    LigerFusedLinearDPOLoss, NO_LIGER = None, f"not run: {error}"

NAMES = ("logps", "ref_logps", "forward_kl", "risk")
# Norm of the difference over the norm, of each value and gradient. float32: the sort's cumulative sum over a row of
# 150,000 probabilities rounds the mass of the tail. bfloat16: gradients are rounded to 8 bits before the last product.
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
# Float32 (tokens, vocabulary) buffers that full logits take at their peak: 13 by count, and what a GPU's sort adds.
FULL_BUFFERS = {"cpu": 14, "cuda": 20}
Outputs = dict[str, Tensor]


@dataclass(frozen=True)
class Problem:
    """A micro-batch."""

    hidden: Tensor  # (tokens, hidden)
    weight: Tensor  # (vocab, hidden)
    ref_hidden: Tensor
    ref_weight: Tensor
    targets: Tensor  # (tokens,)
    upstream: Tensor  # (3, tokens): what logps, forward_kl and risk are multiplied with before they are added up

    def gradients(self, total: Tensor) -> Outputs:
        """Gradients of ``total``."""
        grads = torch.autograd.grad(total, [self.hidden, self.weight])
        return dict(zip(("hidden_grad", "weight_grad"), grads, strict=True))

    def outputs(self, values: Outputs) -> Outputs:
        """Values and gradients of their weighted sum."""
        trained = torch.stack([values[name] for name in ("logps", "forward_kl", "risk")])
        return {name: values[name].detach() for name in NAMES} | self.gradients((self.upstream * trained).sum())


def free_bytes(device: torch.device) -> int:
    """Return the memory that can still be allocated on ``device``, with what PyTorch's allocator keeps in reserve."""
    if device.type == "cpu":
        return int(psutil.virtual_memory().available)
    free, _ = torch.accelerator.get_memory_info(device)
    return int(free + torch.accelerator.memory_reserved(device) - torch.accelerator.memory_allocated(device))


def make_problem(vocab: int, tokens: int, arguments: argparse.Namespace) -> Problem:
    """Draw a problem."""
    generator = torch.Generator().manual_seed(vocab + tokens)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    hidden, weight = normal(tokens, arguments.hidden), normal(vocab, arguments.hidden) * 3 / math.sqrt(arguments.hidden)
    near = hidden + 0.1 * normal(*hidden.shape), weight + 0.1 * weight.std() * normal(*weight.shape)
    states = (tensor.to(arguments.device, getattr(torch, arguments.dtype)) for tensor in (hidden, weight, *near))
    hidden, weight, ref_hidden, ref_weight = states
    targets = torch.randint(0, vocab, (tokens,), generator=generator).to(arguments.device)
    upstream = normal(3, tokens).to(arguments.device)
    return Problem(hidden.requires_grad_(), weight.requires_grad_(), ref_hidden, ref_weight, targets, upstream)


def ours(problem: Problem, chunk_size: int | None) -> Outputs:
    """In chunks."""
    values = chunked_token_statistics(
        HeadStates(problem.hidden, problem.weight),
        HeadStates(problem.ref_hidden, problem.ref_weight),
        problem.targets,
        statistics=NAMES,
        measure=CVaR(steps.LEVEL),
        chunk_size=chunk_size,
    )
    return problem.outputs(values)


def full_logits(problem: Problem) -> tuple[Tensor, Tensor]:
    """Float32 logits of policy and reference."""
    with torch.no_grad():
        ref_logits = (problem.ref_hidden @ problem.ref_weight.T).float()
    return (problem.hidden @ problem.weight.T).float(), ref_logits


def sorted_tail(d: Tensor, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sort d from the largest down; return it, its weights in the CVaR, and the order."""
    d_sorted, order = d.sort(1, descending=True)
    mass = p.gather(1, order)
    retained = (steps.LEVEL - (mass.cumsum(1) - mass)).clamp(min=0).minimum(mass) / steps.LEVEL
    return d_sorted, retained, order


def sorted_cvar(d: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    """CVaR by a full sort, and its derivative in d."""
    d_sorted, retained, order = sorted_tail(d, log_p.exp())
    return (retained * d_sorted).sum(1), torch.empty_like(d).scatter_(1, order, retained)


def oracle(problem: Problem) -> Outputs:
    """Every statistic, by its formula."""
    return problem.outputs(token_statistics(*full_logits(problem), problem.targets, sorted_cvar))


def direct(problem: Problem) -> Outputs:
    """Nothing but the four statistics, by autograd: the sort is differentiable by itself."""
    logits, ref_logits = full_logits(problem)
    logps, ref_logps = logits.log_softmax(1), ref_logits.log_softmax(1)
    d, p = ref_logps - logps, ref_logps.exp()
    values = {
        "logps": logps.gather(1, problem.targets[:, None]).squeeze(1),
        "ref_logps": ref_logps.gather(1, problem.targets[:, None]).squeeze(1),
        "forward_kl": (p * d).sum(1),
        "risk": torch.mul(*sorted_tail(d, p)[:2]).sum(1),  # without names that would keep buffers alive
    }
    return problem.outputs(values)


def our_dpo(problem: Problem, length: int, chunk_size: int | None) -> Outputs:
    """Loss and gradients of DPO on rows of ``length`` tokens, the first half of them chosen."""
    logps = chunked_token_logps(problem.hidden, problem.weight, problem.targets, chunk_size=chunk_size)
    ref_logps = chunked_token_logps(problem.ref_hidden, problem.ref_weight, problem.targets, chunk_size=chunk_size)
    chosen, rejected = (logps - ref_logps).view(-1, length).sum(1).chunk(2)
    loss = -logsigmoid(steps.BETA * (chosen - rejected)).mean()
    return {"loss": loss.detach()} | problem.gradients(loss)


def liger_dpo(problem: Problem, length: int) -> Outputs:
    """The same by Liger, one pair at a time, as it comes."""
    loss_of = LigerFusedLinearDPOLoss(beta=steps.BETA, compiled=problem.hidden.is_cuda)
    rows = (-1, length, problem.hidden.shape[1])
    loss, _ = loss_of(
        problem.weight,
        problem.hidden.view(rows),
        problem.targets.view(-1, length),
        ref_input=problem.ref_hidden.view(rows),
        ref_weight=problem.ref_weight,
    )
    return {"loss": loss.detach()} | problem.gradients(loss)


def compare(runs: dict[str, measure.Run], arguments: argparse.Namespace, label: str) -> dict[str, Any]:
    """Check that the first way agrees with the others, then measure all."""
    first, *others = runs
    found: Any = runs[first]()  # also the warm-up
    differences: dict[str, dict[str, float]] = {}
    for name in others:
        expected: Any = runs[name]()
        differences[name] = {
            key: float((found[key].float() - value.float()).norm() / value.float().norm())
            for key, value in expected.items()
        }
        del expected
        worst = max(differences[name].values())
        if not worst <= TOLERANCE[arguments.dtype]:
            raise SystemExit(f"{label}: {first} and {name} differ by {worst:.1e}: {differences[name]}")
    gradients = sum(value.nbytes for key, value in found.items() if key.endswith("_grad"))
    del found
    return {
        "relative_differences": differences,
        "gradient_bytes": gradients,
        **measure.measurements(runs, arguments.repeats, arguments.device, label),
    }


def statistics_row(problem: Problem, arguments: argparse.Namespace, label: str) -> dict[str, Any]:
    """The part `statistics`."""
    runs: dict[str, measure.Run] = {"ours": partial(ours, problem, arguments.chunk_size)}
    device = problem.hidden.device
    limit = free_bytes(device) * 3 // 4 if arguments.skip_above is None else arguments.skip_above
    needed = 4 * len(problem.targets) * len(problem.weight) * FULL_BUFFERS[device.type]
    if needed > limit:
        reason = f"not run: takes about {needed / 2**30:.1f} GiB, above {limit / 2**30:.1f}"
        return {**compare(runs, arguments, label), "skipped": {"oracle": reason, "direct": reason}}
    runs |= {"oracle": partial(oracle, problem), "direct": partial(direct, problem)}
    return {**compare(runs, arguments, label), "skipped": {}}


def logps_row(problem: Problem, arguments: argparse.Namespace, label: str) -> dict[str, Any]:
    """The part `logps`."""
    length = min(arguments.length, len(problem.targets) // 2)
    runs: dict[str, measure.Run] = {"ours": partial(our_dpo, problem, length, arguments.chunk_size)}
    if LigerFusedLinearDPOLoss is None:
        return {**compare(runs, arguments, label), "skipped": {"liger": NO_LIGER}}
    return {**compare({**runs, "liger": partial(liger_dpo, problem, length)}, arguments, label), "skipped": {}}


def step_row(tokens: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure a whole optimiser step on rows of --length tokens, a quarter of them prompt."""
    length = min(arguments.length, tokens // 2)
    settings = argparse.Namespace(**vars(arguments), layers=4, prompt=None, pairs=tokens // (2 * length))
    inputs = steps.batch(length, settings)
    runs: dict[str, measure.Run] = {}
    with tempfile.TemporaryDirectory() as folder:
        for method in ("ra-dpo", "dpo"):
            step, _ = steps.method_step(method, settings, folder, arguments.chunk_size)
            runs[method] = partial(step, inputs)
            runs[method]()  # the warm-up
        row = measure.measurements(runs, arguments.repeats, arguments.device, f"step, {tokens} tokens")
    return {"vocab": steps.VOCABULARY, "tokens": tokens, **row, "skipped": {}}


def slope(points: Sequence[tuple[float, float]]) -> float | None:
    """Least-squares slope of log y over log x; None for fewer than two different x."""
    xs, ys = [math.log(x) for x, _ in points], [math.log(y) for _, y in points]
    if len(set(xs)) < 2:
        return None
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    products = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    return products / sum((x - mean_x) ** 2 for x in xs)


def growth(rows: list[dict[str, Any]], ways: Sequence[str]) -> list[dict[str, Any]]:
    """Slopes of every way over tokens at each vocabulary, and over vocabularies at each number of tokens."""
    found = []
    for over, fixed in (("tokens", "vocab"), ("vocab", "tokens")):
        for value in sorted({row[fixed] for row in rows}):
            for way in ways:
                chosen = [row for row in rows if row[fixed] == value and way in row["median_seconds"]]
                slopes = {
                    quantity: slope([(row[over], row[quantity][way]) for row in chosen])
                    for quantity in ("median_seconds", "minimum_seconds", "peak_bytes")
                }
                if slopes["peak_bytes"] is not None:
                    found.append({"way": way, "over": over, fixed: value, **slopes})
    return found


def growth_table(lines: list[dict[str, Any]]) -> Table:
    """The slopes of :func:`growth`."""
    table = Table(
        "way", "over", "at", "median time", "minimum time", "memory", title="growth: slopes of the logarithms"
    )
    for line in lines:
        fixed = next(f"{key} {line[key]}" for key in ("tokens", "vocab") if key in line)
        slopes = (f"{line[key]:.2f}" for key in ("median_seconds", "minimum_seconds", "peak_bytes"))
        table.add_row(line["way"], line["over"], fixed, *slopes)
    return table


PARTS: dict[str, tuple[Callable[[Problem, argparse.Namespace, str], dict[str, Any]], Sequence[str]]] = {
    "statistics": (statistics_row, ("ours", "oracle", "direct")),
    "logps": (logps_row, ("ours", "liger")),
}


def main() -> None:
    """Measure, print tables, write JSON."""
    parser = measure.parser("Token statistics against a reference, ours against full logits and Liger.")
    parser.add_argument("--vocab", type=int, nargs="+", default=[32_000, 49_152])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024])
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--length", type=int, default=512, help="tokens of a response, in the part logps")
    parser.add_argument("--chunk-size", type=int, help="of ours (default: by the vocabulary)")
    parser.add_argument("--skip-above", type=int, metavar="BYTES", help="(default: three quarters of the free memory)")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--gpu-step", action="store_true", help="also a whole Ra-DPO step against a DPO step (CUDA)")
    arguments = parser.parse_args()
    if arguments.gpu_step and not arguments.device.startswith("cuda"):
        parser.error("--gpu-step needs a CUDA device")
    for tokens in arguments.tokens:
        if tokens < 2 or tokens % (2 * min(arguments.length, tokens // 2)):
            parser.error(f"--tokens {tokens} is not a whole number of pairs of --length {arguments.length}")
    packages = ["liger-kernel"] if LigerFusedLinearDPOLoss else []
    rows: dict[str, list[dict[str, Any]]] = {part: [] for part in arguments.parts}
    results: dict[str, Any] = {}
    for vocab in arguments.vocab:
        for tokens in arguments.tokens:
            problem = make_problem(vocab, tokens, arguments)
            for part in arguments.parts:
                row = PARTS[part][0](problem, arguments, f"{part}, vocabulary {vocab}, {tokens} tokens")
                rows[part].append({"vocab": vocab, "tokens": tokens, **row})
                results[part] = {"rows": rows[part], "growth": growth(rows[part], PARTS[part][1])}
                measure.write(arguments, results, *packages)  # so that what took hours outlives an interruption
    for part in arguments.parts:
        Console().print(measure.table(f"{part}; ratios: ours to the others", rows[part], "vocab", "tokens"))
        if results[part]["growth"]:
            Console().print(growth_table(results[part]["growth"]))
    if arguments.gpu_step:
        whole = [step_row(tokens, arguments) for tokens in arguments.tokens]
        results["step"] = {"rows": whole, "growth": growth(whole, ("ra-dpo", "dpo"))}
        Console().print(measure.table("step; ratios: Ra-DPO to DPO", whole, "vocab", "tokens"))
    measure.write(arguments, results, *packages)


if __name__ == "__main__":
    main()
