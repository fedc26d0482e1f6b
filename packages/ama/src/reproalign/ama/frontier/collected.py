"""What the child runs of ``ama frontier`` measured: rows of ``points.csv``, and what their intervals are drawn from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from reproalign.ama.frontier.entries import Entry
from reproalign.ama.frontier.evaluated import LOSSES, REWARDS
from reproalign.ama.frontier.plan import Chain, FrontierPlan
from reproalign.ama.points import Measure, Point
from reproalign.ama.ratios_file import read_ratios
from reproalign.common.errors import UserError
from reproalign.common.records.fingerprints import identity_of
from reproalign.common.records.folder import read_record
from reproalign.common.records.handed_on import intact

RENAMED = {"wmt14_fr_en": "bleu"}  # a suite's benchmark -> the column that the published series have it in
BESIDE = ("length", "discard_rate", "kl")  # measures of `evaluate` that are told but are no task
WIN_RATE = "mean_logit"


@dataclass(frozen=True)
class Measured:
    """A model's measures.

    Attributes:
        x: mean reward or win rate.
        rewards: (prompts,) of each prompt; empty where only ``x`` is known.
        tasks: metric -> number; perplexities among them, of which lower is better.
        losses: file of texts, or "" for all -> (texts, 2): of each text the sum of its losses and its tokens.
        beside: further measures of its responses.
        weights: SHA-256 of what was evaluated, or its commit on the Hub.
    """

    x: Measure
    rewards: Float[np.ndarray, " prompts"]
    tasks: dict[str, Measure]
    losses: dict[str, Float[np.ndarray, "texts 2"]]
    beside: dict[str, Measure]
    weights: str


@dataclass(frozen=True)
class MeasuredModel:
    """A row of the table, with its model's measures."""

    entry: Entry
    point: Point
    measured: Measured


def collect(plan: FrontierPlan, folder: Path, *, measure: str, tensors: str) -> list[MeasuredModel]:
    """Read every finished chain below ``folder``, a row for each entry.

    Args:
        plan: of the frontier.
        folder: of its run.
        measure: note of what ``x`` is, empty for a reward.
        tensors: rule that averages are made by.
    """
    measured = {name: read_measured(chain, folder, by_reward=not measure) for name, chain in plan.chains.items()}
    weighted = {name: _layer_weighted(chain, folder) for name, chain in plan.chains.items()}
    found = []
    for entry in plan.sweeps.entries:
        own = measured[entry.model]
        notes = {"measure": measure} if measure else {"rewards": f"evaluate-{entry.model}/{REWARDS}"}
        if plan.chains[entry.model].average is not None and entry.method != "graft":
            notes["rule"] = tensors
        if weighted[entry.model] is not None:
            notes["note"] = f"mean over layers {weighted[entry.model]:.6g}"
        point = Point(
            series=entry.series,
            method=entry.method,
            reward=own.x,
            algorithm=entry.algorithm,
            part=entry.part,
            alpha=entry.alpha,
            parameter=entry.parameter,
            value=entry.value,
            metrics={**own.tasks, **own.beside},
            notes=notes,
        )
        found.append(MeasuredModel(entry, point, own))
    return found


def read_measured(chain: Chain, folder: Path, *, by_reward: bool) -> Measured:
    """Read the measures of one model.

    Args:
        chain: its runs.
        folder: of the frontier.
        by_reward: ``x`` is the reward; otherwise the win rate, and the reward, if there is one, is told beside it.

    Raises:
        UserError: if a file of its runs is missing or cut.
    """
    run = folder / chain.evaluate.name
    record = read_record(run)
    metrics = record["metrics"]
    tasks: dict[str, Measure] = {}
    if chain.benchmarks is not None:
        for name, entry in read_record(folder / chain.benchmarks.name)["metrics"].items():
            if entry["value"] is not None:
                tasks[RENAMED.get(name, name)] = Measure(entry["value"], entry["stderr"])
    tasks |= {name: _measure(metrics, name) for name in metrics if _is_perplexity(name)}
    rewards = [row["reward"] for row in _lines(run / REWARDS)] if by_reward else []
    beside = BESIDE if by_reward else ("reward", *BESIDE)
    return Measured(
        x=_measure(metrics, "reward") if by_reward else _win_rate(chain, folder),
        rewards=np.asarray(rewards, dtype=np.float64),
        tasks=tasks,
        losses=_losses(run / LOSSES),
        beside={name: _measure(metrics, name) for name in beside if name in metrics},
        weights=identity_of(record["fingerprints"]["weights"]["model"]),
    )


def lower_is_better(metric: str) -> bool:
    """Say whether less of a task's measure is better."""
    return metric.startswith("perplexity")


def _win_rate(chain: Chain, folder: Path) -> Measure:
    if chain.judge is None:  # the model that the others are compared with
        return Measure(0.5, 0.0)
    judged = read_record(folder / chain.judge.name)["metrics"]
    found = judged.get(WIN_RATE, judged)
    value = found["win_rate"]
    if value is None:
        raise UserError(f"{chain.judge.name}: there is no verdict, so no win rate; give win_rate.judge a judge")
    counted = found["wins"] + found["ties"] + found["losses"]
    # The binomial error, as of the published win rates: ties make it too large rather than too small.
    return Measure(float(value), float(np.sqrt(value * (1 - value) / counted)))


def _measure(metrics: Mapping[str, Any], name: str) -> Measure:
    return Measure(metrics[name], metrics.get(f"{name}_stderr"))


def _is_perplexity(name: str) -> bool:
    return name.startswith("perplexity") and not name.endswith("_stderr")


def _losses(path: Path) -> dict[str, Float[np.ndarray, "texts 2"]]:
    """Return the losses by the name of the perplexity that they make."""
    if not path.is_file():
        return {}
    rows = list(_lines(path))
    files = list(dict.fromkeys(row["file"] for row in rows))
    found = {"perplexity": np.asarray([[row["nll"], row["tokens"]] for row in rows])}
    if len(files) > 1:
        for file in files:
            own = [[row["nll"], row["tokens"]] for row in rows if row["file"] == file]
            found[f"perplexity_{file}"] = np.asarray(own)
    return found


def _layer_weighted(chain: Chain, folder: Path) -> float | None:
    """Return the mean ratio over layers of learned ratios and patterns, whose parts may differ in size."""
    if chain.average is None or chain.model.average.get("method") == "graft":
        return None
    return read_ratios(str(folder / chain.average.name)).means[1]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = intact(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read, though its run is finished; remove that run's folder") from error
    return (json.loads(line) for line in lines)
