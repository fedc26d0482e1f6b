"""``more-rm study figures``: the paper's figures of runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from reproalign.common.console import say
from reproalign.common.errors import UserError, choose
from reproalign.common.invocation import Invocation
from reproalign.common.records import Run
from reproalign.common.records.paper import load_paper
from reproalign.more.study import draw
from reproalign.more.study.claim_kinds import ece_and_win_points
from reproalign.more.study.config import FiguresConfig
from reproalign.more.study.findings import Check
from reproalign.more.study.measured import measured_results
from reproalign.more.study.results import FIVE, TOP, Results, in_order
from reproalign.more.study.runs import MORE, Floats, StudiedRun, read_runs

PACKAGE = "reproalign.more"
AGAINST = ("sft", "base")  # what aligned models are compared with: Alpaca-SFT, or the model they began with


def figures(config: FiguresConfig, invocation: Invocation) -> None:
    """Draw what the runs suffice for, into ``plots``.

    ``overlay.png``: distributions of reward differences on each test set (figures 1 and 9); ``boxes.png``: boxes of
    right and wrong pairs (1, 5 and 8); ``matrix.png``: accuracy of each model on each set (1); ``ece-over-sets.png``:
    ECE over the number of training sets (6), ``ece-over-wins.png``: over wins - losses of aligned models (7).

    Raises:
        UserError: if there is nothing to draw, or a domain that no run has.
    """
    bases = dict(load_paper(PACKAGE)["bases"])
    if not config.runs:
        raise UserError("runs is empty; give folders of runs that evaluated held-out domains")
    runs = read_runs(config.runs, bases)
    results = measured_results(runs, config, bases)
    evaluated = by_label([run for run in runs if run.domains])  # not those that compared answers
    panels = margin_panels(evaluated, config.domains)
    with Run.open(invocation) as run:
        folder = run.dir / "plots"
        if panels:
            draw.overlay(panels, folder / "overlay.png")
            draw.boxes(panels, folder / "boxes.png")
            domains = in_order((name for group in evaluated.values() for name in group[0].domains), FIVE)
            draw.matrix(accuracy_matrix(evaluated), domains, folder / "matrix.png")
        curves, top = sets_curves(results)
        if any(len(points) > 1 for points in curves.values()):
            draw.ece_over_sets(curves, top, folder / "ece-over-sets.png")
        points = win_points(results)
        if points:
            draw.ece_over_wins(points, folder / "ece-over-wins.png")
        drawn = sorted(path.name for path in folder.glob("*.png"))
        if not drawn:
            raise UserError("runs: nothing to draw; give runs that evaluated held-out domains or compared answers")
        run.set_metrics({"figures": len(drawn)})
        say(f"{', '.join(drawn)}: {folder}")


def by_label(runs: Sequence[StudiedRun]) -> dict[str, list[StudiedRun]]:
    """Group runs by base and scheme, which is their label; the base is left out where all have one."""
    bases = {run.origin.base for run in runs}
    found: dict[str, list[StudiedRun]] = {}
    for run in runs:
        label = run.origin.scheme if len(bases) == 1 else f"{run.origin.base} {run.origin.scheme}"
        found.setdefault(label, []).append(run)
    return found


def margin_panels(evaluated: Mapping[str, Sequence[StudiedRun]], wanted: Sequence[str]) -> dict[str, dict[str, Floats]]:
    """Return domain -> label -> margins, those of seeds together; of the domains asked for, or all.

    Raises:
        UserError: for a domain that no run has.
    """
    there = in_order((name for runs in evaluated.values() for run in runs for name in run.margins), FIVE)
    chosen = [choose("domains", name, there) for name in wanted] or there
    return {
        domain: {
            label: np.concatenate([run.margins[domain] for run in runs])
            for label, runs in evaluated.items()
            if all(domain in run.margins for run in runs)
        }
        for domain in chosen
    }


def accuracy_matrix(evaluated: Mapping[str, Sequence[StudiedRun]]) -> dict[str, dict[str, float]]:
    """Return label -> domain -> accuracy, the mean over seeds."""
    return {
        label: {
            domain: float(np.mean([run.domains[domain]["accuracy"] for run in runs]))
            for domain in runs[0].domains
            if all(domain in run.domains for run in runs)
        }
        for label, runs in evaluated.items()
    }


def sets_curves(results: Results) -> tuple[dict[str, dict[int, float]], dict[str, float]]:
    """Return base -> number of MORE's training sets -> ECE on helpful and harmless, and base -> that of ``top``."""
    curves: dict[str, dict[int, float]] = {}
    top = {}
    for key, value in results.items():
        if key.domain != "hh" or key.metric != "ece_10":
            continue
        if key.scheme == TOP:
            top[key.base] = value.value
        elif found := re.fullmatch(rf"{MORE}(?:-(\d+))?", key.scheme):
            curves.setdefault(key.base, {})[int(found[1] or len(FIVE))] = value.value
    return curves, top


def win_points(results: Results) -> dict[str, list[tuple[float, float]]]:
    """Return base -> (ECE of a reward model, wins - losses of the model aligned by it against the unaligned one)."""
    found: dict[str, list[tuple[float, float]]] = {}
    for base in dict.fromkeys(key.base for key in results):
        for against in AGAINST:
            points = list(ece_and_win_points(Check({"against": against, "domain": "hh"}, results, {}), base))
            if points:
                found.setdefault(base, []).extend(points)
    return found
