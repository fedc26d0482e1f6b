"""Checks that compare points with θ, θ_0 or each other, at single places."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from reproalign.ama.study.check import Check
from reproalign.ama.study.claim_fronts import two_sweeps
from reproalign.ama.study.findings import Effect, number
from reproalign.ama.study.results import REWARD, Results, Values
from reproalign.common.study.findings import Finding


def tax(check: Check) -> Finding[Effect]:
    """Compare θ with θ_0: the reward up, the tasks down."""
    effects, missing, results = [], [], check.results
    for algorithm in check.entry["algorithms"]:
        post, pre = results.post(algorithm), results.pre(algorithm)
        if post is None or pre is None:
            missing.append(f"no θ and θ_0 of {algorithm}")
            continue
        for metric in (REWARD, *check.entry["metrics"]):
            if len(results.known((post, pre), metric)) < 2:
                missing.append(f"no {metric} of {algorithm}")
                continue
            base = float(results.values[pre, results.column(metric)])

            def text(
                value: float, name: str = f"{algorithm} {metric}", base: float = base, metric: str = metric
            ) -> str:
                return f"{name} {number(value, metric)}" + (f" ({100 * value / abs(base):+.1f} %)" if base else "")

            condition = "above" if metric == REWARD else "below"
            label = f"{algorithm} {metric}"
            effects.append(check.effect(label, metric, check.gap(post, pre, metric), condition, text=text))
    return Finding(effects, missing)


def part(check: Check) -> Finding[Effect]:
    """Find the ratio at which averaging one part raises the reward most while the task rises too."""
    effects, missing, notes, results = [], [], [], check.results
    for algorithm in check.entry["algorithms"]:
        gains = {}
        for name in (check.entry["part"], *check.entry["beside"]):
            sweep = results.sweep(algorithm, "ma" if name == "whole" else "part", part="" if name == "whole" else name)
            metric = next((found for found in check.entry["metrics"] if len(results.known(sweep, found)) > 1), None)
            if metric is None or results.at(sweep, 0.0) is None:
                if name == check.entry["part"]:
                    missing.append(f"no sweep of the {name} part of {algorithm} from θ on")
                continue
            sweep = results.known(sweep, metric)
            gains[name] = _both_rise(check, sweep, metric)
            if name == check.entry["part"]:
                effects.append(_part_effect(check, algorithm, name, sweep, metric))
        if check.entry["part"] in gains:
            shown = [f"{name} {', '.join(f'{alpha:g}' for alpha in found) or 'never'}" for name, found in gains.items()]
            notes.append(f"{algorithm}: both rise at α: {'; '.join(shown)}")
    return Finding(effects, missing, notes)


def at_ratio(check: Check) -> Finding[Effect]:
    """Compare the reward at one ratio with θ's."""
    effects, missing, notes, entry, results = [], [], [], check.entry, check.results
    for method in entry["methods"]:
        for algorithm in entry["algorithms"][method]:
            sweep = results.sweep(algorithm, method)
            point, post = results.at(sweep, entry["alpha"]), results.post(algorithm)
            if point is None or post is None:
                missing.append(f"no {method} of {algorithm} at α = {entry['alpha']:g}, or no θ")
                continue
            label = f"{method} {algorithm}"
            effects.append(check.effect(label, REWARD, check.gap(point, post, REWARD), "not_below"))
            known = [name for name in results.metrics[1:] if len(results.known((point, post), name)) == 2]
            gains = [f"{name} {number(check.gap(point, post, name)(results.values), name)}" for name in known]
            notes += [f"{label} gains {', '.join(gains)}"] if gains else []
    return Finding(effects, missing, notes)


def best(check: Check) -> Finding[Effect]:
    """Compare the highest value of two algorithms' MA sweeps."""
    metric, names = check.entry["metric"], check.entry["algorithms"]
    found = two_sweeps(check, metric)
    if isinstance(found, str):
        return Finding(missing=[found])
    one, other = found
    column = check.results.column(metric)

    def difference(values: Values) -> float:
        return float(values[one, column].max() - values[other, column].max())

    label = f"best {metric}"
    tops = {name: check.results.values[sweep, column].max() for name, sweep in zip(names, found, strict=True)}
    note = f"{label}: {', '.join(f'{name} {top:.5g}' for name, top in tops.items())}"
    return Finding([check.effect(label, metric, difference, "above")], notes=[note])


def posts(check: Check) -> Finding[Effect]:
    """Compare θ of one algorithm with θ of others."""
    effects, missing, entry, results = [], [], check.entry, check.results
    own = results.post(entry["algorithm"])
    for other in entry["against"]:
        index = results.post(other)
        if own is None or index is None:
            missing.append(f"no θ of {entry['algorithm'] if own is None else other}")
            continue
        for metric in entry["metrics"]:
            if len(results.known((own, index), metric)) == 2:
                label = f"{metric} against {other}"
                effects.append(check.effect(label, metric, check.gap(own, index, metric), "above"))
            else:
                missing.append(f"no {metric} of {entry['algorithm']} and {other}")
    known = {name: results.post(name) for name in (entry["algorithm"], *entry["against"])}
    rewards = [f"{name} {results.values[found, 0]:.3f}" for name, found in known.items() if found is not None]
    return Finding(effects, missing, [f"rewards: {', '.join(rewards)}"] if effects else [])


def below_pre(check: Check) -> Finding[Effect]:
    """Compare points with θ_0."""
    effects, missing = [], []
    for algorithm in check.entry["algorithms"]:
        points, absent = check.chosen(algorithm)
        missing += absent
        pre = check.results.pre(algorithm)
        for metric in check.entry["metrics"]:
            if pre is None or not check.results.known([pre], metric):
                missing.append(f"no {metric} of θ_0 ({algorithm})")
                continue
            for index in check.results.known(points, metric):
                label = f"{check.results.label(index)} {metric} against θ_0"
                effects.append(check.effect(label, metric, check.gap(index, pre, metric), "below"))
    return Finding(effects, missing)


def trend(check: Check) -> Finding[Effect]:
    """Tell whether a metric rises with a parameter, step by step."""
    effects, missing, entry, results = [], [], check.entry, check.results
    metric = entry["metric"]
    for method in entry["methods"]:
        found = results.find(method=method, algorithm=entry["algorithm"], parameter=entry["parameter"])
        rows = sorted(
            (value, index) for index in results.known(found, metric) if (value := _value(results, index)) is not None
        )
        if len(rows) < 2:
            missing.append(f"fewer than two values of {entry['parameter']} for {method} ({entry['algorithm']})")
        for (low, one), (high, other) in pairwise(rows):
            label = f"{method}: {entry['parameter']} {low:g}→{high:g} {metric}"
            effects.append(check.effect(label, metric, check.gap(other, one, metric), "above"))
    return Finding(effects, missing)


def rows(check: Check) -> Finding[Effect]:
    """Compare the averaged models of Table 1 with the originals."""
    effects, missing, entry, results = [], [], check.entry, check.results
    for algorithm in entry["algorithms"]:
        post, average = (
            results.find(measure=entry["measure"], method=name, algorithm=algorithm) for name in ("post", "hma")
        )
        if not post or not average:
            missing.append(f"no original and averaged {algorithm} with {entry['measure']} win rates")
            continue
        for metric in (REWARD, *entry["metrics"]):
            if len(results.known((post[0], average[0]), metric)) < 2:
                missing.append(f"no {metric} of {algorithm}")
                continue
            label = f"{algorithm} {'win rate' if metric == REWARD else metric}"
            effects.append(check.effect(label, metric, check.gap(average[0], post[0], metric), "above"))
    return Finding(effects, missing)


def _both_rise(check: Check, sweep: Sequence[int], metric: str) -> list[float]:
    """Return the ratios at which the reward is θ's at least and the task is above θ's."""
    results = check.results
    post = results.at(sweep, 0.0)
    assert post is not None  # checked by the caller
    column = results.column(metric)
    return [
        results.points[index].alpha or 0.0
        for index in sweep
        if index != post
        and results.values[index, 0] >= results.values[post, 0]
        and results.values[index, column] > results.values[post, column]
    ]


def _part_effect(check: Check, algorithm: str, name: str, sweep: Sequence[int], metric: str) -> Effect:
    results = check.results
    post = results.at(sweep, 0.0)
    others = [index for index in sweep if index != post]
    column = results.column(metric)

    def compute(values: Values) -> float:
        gains = values[others] - values[post]
        return float(np.max(np.where(gains[:, column] > 0, gains[:, 0], -np.inf)))

    def text(value: float) -> str:
        gains = results.values[others] - results.values[post]
        place = int(np.argmax(np.where(gains[:, column] > 0, gains[:, 0], -np.inf)))
        where = f" at α = {results.points[others[place]].alpha:g} ({metric} {gains[place, column]:+.2f})"
        return f"{algorithm} {name} reward {number(value, REWARD)}" + (where if np.isfinite(value) else "")

    return check.effect(f"{algorithm} {name}", REWARD, compute, "above", text=text)


def _value(results: Results, index: int) -> float | None:
    try:
        return float(results.points[index].value)
    except ValueError:
        return None
