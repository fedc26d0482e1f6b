"""``dtm study gap``: how much faster the loss falls on the training rows than on held-out ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from reproalign.common.console import result_console, say
from reproalign.common.errors import UserError
from reproalign.common.evaluation.plots import MeanCurve, comparison
from reproalign.common.files import write_json, write_text
from reproalign.common.invocation import Invocation
from reproalign.common.records import Run
from reproalign.common.records.paper import load_paper
from reproalign.dtm.study.config import GapConfig
from reproalign.dtm.study.results import EvaluationRun, check_same_rows, read_evaluation

FLAT = 1e-12  # a held-out loss that changes by less has no ratio


def loss_gap(training: Sequence[float], held_out: Sequence[float], mode: str = "incremental") -> list[float]:
    """Return ρ_k = ΔL_train(t_k) / ΔL_val(t_k) for k = 1..m (R8).

    ``incremental``: ΔL(t_k) = L(t_{k-1}) - L(t_k) with L(t_0) of the base model; ``cumulative``: L(t_0) - L(t_k).

    Args:
        training: token-mean losses on training rows at t_0, …, t_m, in nats.
        held_out: likewise on held-out rows.
        mode: ``incremental`` or ``cumulative``.

    Returns:
        m ratios, NaN where |ΔL_val| < 1e-12.

    Raises:
        ValueError: for different lengths.
    """
    if len(training) != len(held_out):
        raise ValueError(f"{len(training)} training losses and {len(held_out)} held-out ones")
    ratios = []
    for k in range(1, len(training)):
        before = k - 1 if mode == "incremental" else 0
        change = held_out[before] - held_out[k]
        ratios.append((training[before] - training[k]) / change if abs(change) >= FLAT else math.nan)
    return ratios


def gap(config: GapConfig, invocation: Invocation) -> None:
    """Compute ρ at every fraction; write ``gap.json``, ``gap.csv`` and ``plots/gap.png``.

    Raises:
        UserError: for lists of other lengths, fractions that do not ascend in (0, 1], or evaluations of other rows.
    """
    fractions = check_fractions(config.fractions)
    parts = {"training": config.training, "held_out": config.held_out}
    for name, folders in parts.items():
        if len(folders) != len(fractions) + 1:
            raise UserError(
                f"{name} names {len(folders)} evaluations; {len(fractions)} fractions need {len(fractions) + 1}, the "
                "base model's first"
            )
    found = {name: [read_evaluation(folder) for folder in folders] for name, folders in parts.items()}
    for evaluations in found.values():
        check_same_rows(evaluations)
    _check_same_models(found["training"], found["held_out"])
    losses = {name: [evaluation.loss for evaluation in evaluations] for name, evaluations in found.items()}
    ratios = loss_gap(losses["training"], losses["held_out"], config.mode)
    with Run.open(invocation) as run:
        for name, evaluations in found.items():
            run.add_fingerprint("data", name, evaluations[0].results["rows"]["sha256"])
        _report(run, config.mode, [0.0, *fractions], losses, ratios)


def check_fractions(fractions: Sequence[float]) -> list[float]:
    """Return the fractions.

    Raises:
        UserError: if there are none, or they do not ascend.
    """
    if not fractions:
        raise UserError("fractions=[] is empty; give fractions of the data, as in fractions=[0.2,0.4,0.6,0.8,1.0]")
    for before, fraction in zip([0.0, *fractions], fractions, strict=False):
        if fraction <= before:
            raise UserError(f"fractions: {fraction:g} stands after {before:g}; fractions must ascend")
    return list(fractions)


def _check_same_models(training: Sequence[EvaluationRun], held_out: Sequence[EvaluationRun]) -> None:
    for left, right in zip(training, held_out, strict=True):
        if left.results["weights"] != right.results["weights"]:
            raise UserError(
                f"{left.folder} and {right.folder} are of different models (by SHA-256); give training and held_out in "
                "the same order"
            )


def _report(run: Run, mode: str, fractions: list[float], losses: dict[str, list[float]], ratios: list[float]) -> None:
    published = load_paper("reproalign.dtm")["loss_gap"]
    table = Table("data", "training loss", "held-out loss", f"ρ, {mode}", header_style="bold")
    lines = ["fraction,training_loss,held_out_loss,rho"]
    for index, fraction in enumerate(fractions):
        train, held = losses["training"][index], losses["held_out"][index]
        rho = "" if not index else "nan" if math.isnan(ratios[index - 1]) else f"{ratios[index - 1]:.4f}"
        table.add_row(f"{fraction:.0%}", f"{train:.4f}", f"{held:.4f}", rho)
        lines.append(f"{fraction},{train!r},{held!r},{rho if not index or rho == 'nan' else repr(ratios[index - 1])}")
    rhos: list[Any] = ["nan" if math.isnan(ratio) else ratio for ratio in ratios]
    facts = {"mode": mode, "fractions": fractions, **losses, "rho": rhos, "published": published}
    write_json(run.dir / "gap.json", facts)
    write_text(run.dir / "gap.csv", "\n".join(lines) + "\n")
    finite = [(at, ratio) for at, ratio in zip(fractions[1:], ratios, strict=True) if not math.isnan(ratio)]
    panels = {"loss, nats per token": {name: _curve(fractions, values) for name, values in losses.items()}}
    ends = [published["first"], published["last"]]
    panels["ρ = ΔL(training) / ΔL(held out)"] = {
        "here": _curve([at for at, _ in finite], [ratio for _, ratio in finite]),
        "published (its ends, in words)": _curve([fractions[1], 1.0], ends),
    }
    comparison(panels, run.dir / "plots" / "gap.png", across="fraction of the data")
    run.set_metrics({"rho": dict(zip(map(str, fractions[1:]), rhos, strict=True))})
    console = result_console()
    console.print(table)
    console.print(f"published: {published['how']}")
    say(f"record, gap.json, gap.csv and plot: {run.dir}")


def _curve(steps: list[float], values: list[float]) -> MeanCurve:
    return MeanCurve(steps, values, values, values)
