"""``more-rm average``: the baseline Averaging, the mean of several reward models' rewards on the same held-out items.

The reward of a response is r = 1/n Σ_i r_i, so a pair's margin is the mean of its margins, and those are what every
evaluation writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reproalign.common.console import result_console, say
from reproalign.common.errors import UserError
from reproalign.common.files import write_json
from reproalign.common.invocation import Invocation
from reproalign.common.records import Run
from reproalign.more.config import AverageConfig
from reproalign.more.metrics import DomainRewards, domain_metrics, named_means
from reproalign.more.report import DIFFERENCES, RESULTS, average_table, write_differences
from reproalign.more.study.runs import Floats, StudiedRun, read_runs

_OF_REWARDS = ("reward_mean", "reward_std", "items")  # a margin tells nothing of these


def average(config: AverageConfig, invocation: Invocation) -> None:
    """Average the margins of several runs, and measure accuracy and calibration of every domain.

    ``final_eval_results.json`` and ``reward_differences.safetensors`` are as an evaluation writes them.

    Raises:
        UserError: for fewer than two runs, or runs that were not measured on the same held-out items.
    """
    if len(config.runs) < 2:
        raise UserError("runs needs two or more folders of `more-rm train` or `evaluate`, as in runs=[A,B]")
    runs = read_runs(config.runs, {})
    check_same_items(runs)
    margins = mean_margins([run.margins for run in runs])
    metrics = {name: margin_metrics(values, config.ties) for name, values in margins.items()}
    with Run.open(invocation) as run:
        for name in margins:
            run.add_fingerprint("data", f"held out:{name}", _held_out(runs[0])[name])
        results: dict[str, Any] = {"domains": metrics, **named_means(metrics)}
        run.set_metrics(results)
        write_json(run.dir / RESULTS, results)
        write_differences(run.dir / DIFFERENCES, {name: as_measured(values) for name, values in margins.items()})
        result_console().print(average_table(results, f"mean reward of {len(runs)} models"))
        say(f"record and differences: {run.dir}")


def check_same_items(runs: Sequence[StudiedRun]) -> None:
    """Check by fingerprints that runs were measured on the same held-out items.

    Raises:
        UserError: naming the domain and the run that differ.
    """
    first = _held_out(runs[0])
    if not first:
        raise UserError(f"{runs[0].folder}: its record has no held-out domains; give runs that evaluated some")
    for run in runs[1:]:
        found = _held_out(run)
        for name in dict.fromkeys([*first, *found]):
            if first.get(name) != found.get(name):
                raise UserError(
                    f"domain '{name}': {runs[0].folder} and {run.folder} were not measured on the same held-out items; "
                    "evaluate both on one data=…"
                )


def mean_margins(runs: Sequence[Mapping[str, Floats]]) -> dict[str, Floats]:
    """Return of every domain the mean of the runs' margins, pair by pair; the pairs are the same ones in one order."""
    return {name: np.mean([run[name] for run in runs], axis=0) for name in runs[0]}


def as_measured(margins: Floats) -> DomainRewards:
    """Return margins as two responses each, the better with the margin for its reward and the worse with 0."""
    rewards = np.stack([margins, np.zeros_like(margins)], 1)
    return DomainRewards(rewards, np.tile([1.0, 0.0], (len(margins), 1)))


def margin_metrics(margins: Floats, ties: str) -> dict[str, float]:
    """Measure margins as :func:`reproalign.more.metrics.domain_metrics` does.

    Args:
        margins: (pairs,) reward of the better response minus that of the worse.
        ties: what a margin of 0 counts for the accuracy: ``wrong``, nothing; ``half``, 1/2.
    """
    measured = as_measured(margins)
    metrics = domain_metrics(measured.rewards, measured.scores, ties=ties)
    return {name: value for name, value in metrics.items() if name not in _OF_REWARDS}


def _held_out(run: StudiedRun) -> dict[str, str]:
    found = run.record.get("fingerprints", {}).get("data", {})
    return {
        name.removeprefix("held out:"): entry["sha256"] for name, entry in found.items() if name.startswith("held out:")
    }
