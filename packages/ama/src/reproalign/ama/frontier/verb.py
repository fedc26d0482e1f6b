"""``ama frontier``: sweeps and baselines as points of reward against tasks, made and evaluated by child runs."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from reproalign.ama.frontier.collected import MeasuredModel, collect
from reproalign.ama.frontier.config import FrontierConfig
from reproalign.ama.frontier.fronts import all_fronts
from reproalign.ama.frontier.plan import Chain, FrontierPlan, make_plan, places
from reproalign.ama.frontier.report import write_report
from reproalign.ama.frontier.sweeps import PRE
from reproalign.ama.points import Measure, write_points
from reproalign.common.console import result_console
from reproalign.common.files import write_json
from reproalign.common.invocation import Invocation
from reproalign.common.launch.children import Child
from reproalign.common.launch.together import run_children
from reproalign.common.records import Run
from reproalign.common.records.fingerprints import identity_entry, identity_of
from reproalign.common.records.folder import read_record

POINTS, FRONTIER = "points.csv", "frontier.json"


def frontier(config: FrontierConfig, invocation: Invocation) -> None:
    """Make and evaluate every model of the sweeps once, and draw reward against each task.

    A model is made by a child ``average-NAME`` (after ``adapt-NAME`` where its ratios are learned), evaluated by
    ``evaluate-NAME`` and, with ``evaluate_on``, ``benchmarks-NAME``, and removed again unless ``keep_models``. Points
    that are one model by construction share it. Written are ``points.csv``, ``frontier.json`` (fronts, hypervolumes,
    margins, noise floor; with bootstrap intervals), ``plots/`` and ``index.html``. A killed run goes on where it was.

    Raises:
        UserError: for a mistake in the options, those of the children included, before anything is run.
        ReportedError: if a child failed; the same command goes on from it.
    """
    plan = make_plan(config, invocation)
    with Run.open(invocation) as run:
        _work(plan, config, run)
        found = collect(plan, run.dir, measure=_measure_note(config), tensors=config.tensors)
        write_points([row.point for row in found], run.dir / POINTS)
        result = _result(config, plan, found, run)
        write_json(run.dir / FRONTIER, result)
        run.set_metrics({"points": len(found), "models": len(plan.chains), "noise_floor": result["noise_floor"]})
        write_report(config, plan, found, result, run)
        places = f"{POINTS}, {FRONTIER}, plots and index.html: {run.dir}"
        result_console().print(places)


def show_plan(config: FrontierConfig, invocation: Invocation) -> None:
    """Print how many models and points there are, and the command lines of the child runs."""
    plan = make_plan(config, invocation)
    print(f"{len(plan.sweeps.entries)} points of {len(plan.chains)} models; {len(plan.children)} child runs:")
    for child in plan.children:
        print(shlex.join(child.invocation.command))


def _work(plan: FrontierPlan, config: FrontierConfig, run: Run) -> None:
    """Run the children: as many models at a time as there is room for, so that few averages lie on the disk at once."""
    chains = list(plan.chains.values())
    adapts = [chain.adapt for chain in chains if chain.adapt is not None]
    _run(run, adapts, config)
    room = len(places(plan, config))
    for start in range(0, len(chains), room):
        part = chains[start : start + room]
        _run(run, _averages(part, run), config)
        first = [plan.again] if plan.again is not None and start == 0 else []
        _run(run, [*(chain.evaluate for chain in part), *first], config)
        _run(run, [chain.benchmarks for chain in part if chain.benchmarks is not None], config)
        _run(run, [chain.judge for chain in part if chain.judge is not None], config)
        for chain in part:
            _note_weights(chain, run)
            if chain.average is not None and not config.keep_models:
                shutil.rmtree(run.dir / chain.average.name / "model", ignore_errors=True)


def _averages(chains: Sequence[Chain], run: Run) -> list[Child]:
    """Return what is still to be averaged: a model that was removed is made again only if something has to read it."""
    children = []
    for chain in chains:
        if chain.average is None or _is_done(chain, run.dir):
            continue
        folder = run.dir / chain.average.name
        if _status(folder) == "finished" and not (folder / "model").is_dir():
            shutil.rmtree(folder)
        children.append(chain.average)
    return children


def _run(run: Run, children: Sequence[Child], config: FrontierConfig) -> None:
    if children:
        run_children(run, children, at_once=config.at_once)


def _is_done(chain: Chain, folder: Path) -> bool:
    """Say whether all that reads a model is finished, so that the model need not be there."""
    readers = [child for child in (chain.evaluate, chain.benchmarks) if child is not None]
    return all(_status(folder / child.name) == "finished" for child in readers)


def _status(folder: Path) -> str:
    return str(read_record(folder)["status"]) if (folder / "run.json").is_file() else ""


def _note_weights(chain: Chain, run: Run) -> None:
    record = read_record(run.dir / chain.evaluate.name)
    fingerprint = record["fingerprints"]["weights"]["model"]
    run.add_fingerprint(
        "weights", chain.model.name, identity_of(fingerprint), made=chain.average is not None, name=fingerprint["name"]
    )


def _measure_note(config: FrontierConfig) -> str:
    if config.x == "reward":
        return ""
    return "pairrm" if (config.win_rate.judge.get("pairrm") or {}).get("model") else "alpacaeval"


def _result(config: FrontierConfig, plan: FrontierPlan, found: Sequence[MeasuredModel], run: Run) -> dict[str, Any]:
    return {
        "version": 1,
        "alpha_on": "pre",
        "x": config.x,
        "tensors": config.tensors,
        "interval": {"confidence": config.confidence, "resamples": config.resamples, "seed": config.seed},
        "noise_floor": _noise_floor(plan, found, run),
        "models": {
            row.entry.model: {**identity_entry(row.measured.weights), "x": asdict(row.measured.x)} for row in found
        },
        "fronts": all_fronts(found, confidence=config.confidence, resamples=config.resamples, seed=config.seed),
    }


def _noise_floor(plan: FrontierPlan, found: Sequence[MeasuredModel], run: Run) -> dict[str, Any] | None:
    """Return by how much θ_0 differs from itself when its responses are drawn with another seed."""
    if plan.again is None:
        return None
    first = next(row.measured for row in found if row.entry.model == PRE)
    metrics = read_record(run.dir / plan.again.name)["metrics"]
    names = {"reward": first.x} if "reward" in metrics else {}
    names |= {name: measure for name, measure in first.beside.items() if name in metrics}
    return {name: _difference(measure, metrics[name]) for name, measure in names.items()}


def _difference(first: Measure, second: float) -> dict[str, float]:
    return {"first": first.value, "second": second, "difference": abs(second - first.value)}
