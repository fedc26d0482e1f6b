"""What an evaluation shows: tables, ``final_eval_results.json``, differences of rewards, and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from rich.table import Table
from safetensors.numpy import save_file

from reproalign.common.console import result_console
from reproalign.common.errors import UserError
from reproalign.common.evaluation.calibration import calibrated_ece, ordered_pairs, probability_calibration
from reproalign.common.evaluation.plots import MeanCurve, comparison, histograms, reliability_diagram
from reproalign.common.files import atomic_path, write_json
from reproalign.common.records import Run
from reproalign.more.metrics import (
    DomainRewards,
    domain_metrics,
    named_means,
    pair_margins,
    temperature_metrics,
)

RESULTS = "final_eval_results.json"
DIFFERENCES = "reward_differences.safetensors"
CURVES = {
    "lambda/{}": "weight λ of the domain's loss",
    "grad_norm/{}": "gradient norm of the reward head",
    "loss/{}": "ranking loss in training (nats)",
    "eval_{}/accuracy": "held-out accuracy",
    "eval_{}/ece_10": "held-out ECE (10 bins)",
    "eval_{}/ece_10_calibrated": "ECE (10 bins) if it were calibrated",
}
LOOK: dict[str, Any] = {"header_style": "bold", "title_justify": "left"}
Domains = Mapping[str, DomainRewards]
Metrics = dict[str, dict[str, float]]  # domain -> metric -> value


def report(
    run: Run,
    measured: Domains,
    *,
    ties: str,
    seed: int = 42,
    before: Domains | None = None,
    temperature: bool = False,
) -> dict[str, Any]:
    """Print, record, write and draw what was measured; for the main process alone.

    Args:
        run: open; its metrics and folder get the results.
        measured: held-out domain -> rewards and scores, of the model that is reported on.
        ties: how pairs of equal rewards count (:func:`domain_metrics`).
        seed: of the halves of temperature scaling.
        before: the same domains under the model that training started from.
        temperature: also measure the rewards after temperature scaling.

    Returns:
        What is written: ``domains`` (domain -> metrics), ``mean`` and, of helpful and harmless, ``mean_hh``; ``before``
        with the same; ``temperature`` with ``shared`` (one for all domains) and ``per_domain``, each domain -> metrics.

    Raises:
        UserError: if a domain has no pairs, or rewards are not finite.
    """
    console = result_console()
    results: dict[str, Any] = {}
    if before:
        results["before"] = _summary(before, ties)
        console.print(measure_table(results["before"]["domains"], "before training"))
    results |= _summary(measured, ties)
    console.print(measure_table(results["domains"], "after training" if before else "held-out preferences"))
    if temperature:
        results["temperature"] = {
            name: temperature_metrics(measured, per_domain=own, ties=ties, seed=seed)
            for name, own in (("shared", False), ("per_domain", True))
        }
        console.print(temperature_table(results["domains"], **results["temperature"]))
    run.set_metrics(results)
    write_json(run.dir / RESULTS, results)
    write_differences(run.dir / DIFFERENCES, measured)
    draw(run, {"before": before, "after": measured} if before else {"rewards": measured})
    return results


def measure_table(metrics: Metrics, title: str) -> Table:
    """Show accuracy, calibration at ten bins, loss and rewards by domain, and their means over the domains.

    Beside the ECE stands the one that a perfectly calibrated model of the same confidences would show.
    """
    heads = ("domain", "accuracy", "ECE", "calibrated", "ACE", "MCE", "loss", "pairs", "reward")
    table = Table(*heads, title=title, box=None, padding=(0, 1, 0, 0), **LOOK)  # fits into 80 columns
    for domain, values in metrics.items():
        reward = f"{values['reward_mean']:.2f} ± {values['reward_std']:.2f}"
        table.add_row(domain, *_measures(values), f"{values['pairs']:.0f}", reward)
    if len(metrics) > 1:
        table.add_section()
        for name, mean in named_means(metrics).items():
            table.add_row({"mean": "mean", "mean_hh": "mean H&H"}[name], *_measures(mean))
    return table


def _measures(values: Mapping[str, float]) -> list[str]:
    calibrated = f"{values['ece_10_calibrated']:.4f} ± {values['ece_10_calibrated_sd']:.4f}"
    return [
        f"{values['accuracy']:.3f}",
        f"{values['ece_10']:.4f}",
        calibrated,
        *(f"{values[name]:.3f}" for name in ("ace_10", "mce_10", "loss")),
    ]


def average_table(results: Mapping[str, Any], title: str) -> Table:
    """Show accuracy, calibration at ten bins, loss and pairs by domain, and their means, of margins alone."""
    table = Table("domain", "accuracy", "ECE", "calibrated", "ACE", "MCE", "loss", "pairs", title=title, **LOOK)
    for domain, values in results["domains"].items():
        table.add_row(domain, *_measures(values), f"{values['pairs']:.0f}")
    table.add_section()
    for name, mean in named_means(results["domains"]).items():
        table.add_row({"mean": "mean", "mean_hh": "mean H&H"}[name], *_measures(mean))
    return table


def temperature_table(metrics: Metrics, shared: Metrics, per_domain: Metrics) -> Table:
    """Show ECE (ten bins) and loss as they are, under one temperature for all domains, and under one for each."""
    title = "temperature scaling: without, one T for all domains, one for each"
    table = Table("domain", "ECE", "loss", "one T", "ECE", "loss", "own T", "ECE", "loss", title=title, **LOOK)
    for domain, values in metrics.items():
        row = [f"{values['ece_10']:.3f}", f"{values['loss']:.3f}"]
        for scaled in (shared[domain], per_domain[domain]):
            row += [f"{scaled['temperature']:.3g}", f"{scaled['ece_10']:.3f}", f"{scaled['loss']:.3f}"]
        table.add_row(domain, *row)
    return table


def write_differences(path: Path, measured: Domains) -> None:
    """Write the reward of the better response minus that of the worse, of every pair: one float32 vector per domain."""
    vectors = {name: pair_margins(of.rewards, of.scores)[0].astype(np.float32) for name, of in measured.items()}
    with atomic_path(path) as temporary:
        save_file(vectors, temporary)


def draw(run: Run, evaluations: Mapping[str, Domains], *, n_bins: int = 10) -> None:
    """Write ``plots/``, one panel per domain: reliability, differences of rewards, rewards; and curves over training.

    Args:
        run: what it logged gives the curves, if there is anything.
        evaluations: label -> domain -> rewards, e.g. of the model before and after training; all share the histograms,
            the last one is the reliability diagrams'.
        n_bins: of the reliability diagrams.
    """
    folder = run.dir / "plots"
    if evaluations:
        margins = {
            label: {name: pair_margins(of.rewards, of.scores)[0] for name, of in measured.items()}
            for label, measured in evaluations.items()
        }
        diagrams = {
            _diagram_title(name, values, n_bins): probability_calibration(*ordered_pairs(values), n_bins=n_bins)
            for name, values in list(margins.values())[-1].items()
        }
        reliability_diagram(
            diagrams, folder / "reliability.png", predicted="p = σ(reward difference)", observed="share preferred"
        )
        rewards = {
            label: {name: of.present for name, of in measured.items()} for label, measured in evaluations.items()
        }
        for values, file, what, counted in (
            (margins, "differences.png", "reward difference, better - worse", "pairs"),
            (rewards, "rewards.png", "reward", "responses"),
        ):
            histograms(_by_domain(values), folder / file, measured=what, counted=counted)
    if panels := domain_curves(run.rows):
        comparison(panels, folder / "domains.png")


def domain_curves(rows: list[dict[str, Any]]) -> dict[str, dict[str, MeanCurve]]:
    """Return what was logged by domain, from the rows of ``metrics.jsonl``: panel -> domain -> curve."""
    logged: dict[str, dict[str, dict[int, float]]] = {}
    for pattern, title in CURVES.items():
        start, end = pattern.split("{}")
        for row in rows:
            for key, value in row.items():
                if key.startswith(start) and key.endswith(end) and isinstance(value, int | float):
                    domain = key.removeprefix(start).removesuffix(end)
                    logged.setdefault(title, {}).setdefault(domain, {})[row["step"]] = value
    return {title: {domain: _curve(points) for domain, points in domains.items()} for title, domains in logged.items()}


def _curve(points: dict[int, float]) -> MeanCurve:
    steps = sorted(points)
    values = [points[step] for step in steps]
    return MeanCurve(steps, values, values, values)


def _summary(measured: Domains, ties: str) -> dict[str, Any]:
    metrics = {name: domain_metrics(of.rewards, of.scores, ties=ties) for name, of in measured.items()}
    empty = [name for name, values in metrics.items() if not values["pairs"]]
    if empty:
        raise UserError(f"domain {empty[0]} has no two responses of different scores; give other held-out rows")
    return {"domains": metrics, **named_means(metrics)}


def _diagram_title(domain: str, margins: ArrayLike, n_bins: int) -> str:
    expected, spread = calibrated_ece(margins, n_bins=n_bins)
    return f"{domain} (calibrated: {expected:.4f} ± {spread:.4f})"


def _by_domain(values: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Turn label -> domain -> array into domain -> label -> list."""
    names = list(values.values())[-1]
    return {name: {label: of[name].tolist() for label, of in values.items() if name in of} for name in names}
