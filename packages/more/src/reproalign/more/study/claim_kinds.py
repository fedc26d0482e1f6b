"""The checks that claims are made of: what their instances are, and when one is borne out.

With x the metric, b a base model and d a domain:

    difference       x(left) - x(right) above or below 0, by b, d and scheme; ``outliers``: of the absolute means
    rest_difference  the same of the mean over oasst1, webgpt and summarize
    shrinks          |x(left) - x(right)| of each base below that of the base before it
    sizes            x(larger base) - x(smaller base) of one scheme
    sets             x falls with every further training set, and ends below another scheme's
    win_rate         wins - losses above 0
    ece_and_wins     Spearman's rank correlation of a reward model's ECE and (wins - losses) below 0
    apart            rewards of the model trained on a domain lie farther from the mean of the others than any of these
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from reproalign.common.errors import UserError
from reproalign.common.study.findings import Finding
from reproalign.more.study.findings import Check, Effect
from reproalign.more.study.results import FIVE, HH, SINGLE, Value, mean_of_domains

REST = tuple(domain for domain in FIVE if domain not in HH)
SIGNS = ("outliers_positive_mean", "outliers_negative_mean")


def difference(check: Check) -> Finding[Effect]:
    """Compare schemes by base and domain."""
    entry, effects, missing = check.entry, [], []
    metrics = SIGNS if entry["metric"] == "outliers" else (entry["metric"],)
    for base in entry["bases"]:
        for right in entry["right"]:
            for domain in entry["domains"]:
                for metric in metrics:
                    pair = [check.value(base, scheme, domain, metric) for scheme in (entry["left"], right)]
                    label = f"{base} {domain}" + (f" against {right}" if len(entry["right"]) > 1 else "")
                    if pair[0] is None or pair[1] is None:
                        missing.append(f"no {metric} of {entry['left']} and {right} on {domain} ({base})")
                        continue
                    left, other = (_absolute(value) if metrics is SIGNS else value for value in pair if value)
                    sign = f" {metric.split('_')[1]}" if metrics is SIGNS else ""
                    effects.append(check.difference(label + sign, left, other, metric, domain, entry["condition"]))
    return Finding(effects, missing)


def rest_difference(check: Check) -> Finding[Effect]:
    """Compare the means over the three other domains; from a mean over five and one over two if there is no more."""
    entry, effects, missing = check.entry, [], []
    for base in entry["bases"]:
        left, right = (_rest(check, base, entry[side], entry["metric"]) for side in ("left", "right"))
        if left is None or right is None:
            missing.append(
                f"no {entry['metric']} of {entry['left']} and {entry['right']} on {', '.join(REST)} ({base})"
            )
            continue
        label = f"{base} {', '.join(REST)}"
        effects.append(check.difference(label, left, right, entry["metric"], "mean5", entry["condition"]))
    return Finding(effects, missing)


def shrinks(check: Check) -> Finding[Effect]:
    """Compare the size of a difference with that of the base before."""
    entry = check.entry
    gaps, missing = [], []
    for base in entry["bases"]:
        left, right = (check.value(base, entry[side], entry["domain"], entry["metric"]) for side in ("left", "right"))
        if left is None or right is None:
            missing.append(f"no {entry['metric']} of {entry['left']} and {entry['right']} ({base})")
        else:
            effect = check.difference(base, left, right, entry["metric"], entry["domain"], "below")
            gaps.append((base, Value(abs(effect.value), effect.error)))
    effects = [
        check.difference(f"{small} → {large}", gap, before, entry["metric"], entry["domain"], "below")
        for (small, before), (large, gap) in pairwise(gaps)
    ]
    return Finding(effects, missing)


def sizes(check: Check) -> Finding[Effect]:
    """Compare two bases."""
    entry = check.entry
    larger, smaller = (
        check.value(entry[side], entry["scheme"], entry["domain"], entry["metric"]) for side in ("larger", "smaller")
    )
    if larger is None or smaller is None:
        return Finding(missing=[f"no {entry['metric']} of {entry['larger']} and {entry['smaller']}"])
    label = f"{entry['larger']} against {entry['smaller']}"
    return Finding([check.difference(label, larger, smaller, entry["metric"], entry["domain"], entry["condition"])])


def sets(check: Check) -> Finding[Effect]:
    """Compare reward models of two, three … training sets, and the last with another scheme."""
    entry, effects, missing = check.entry, [], []
    metric, domain = entry["metric"], entry["domain"]
    for base in entry["bases"]:
        names = [*(f"{entry['scheme']}-{count}" for count in range(2, entry["sets"])), entry["scheme"]]
        found = [(name, value) for name in names if (value := check.value(base, name, domain, metric))]
        if len(found) < len(names):
            missing.append(f"no {metric} of every number of sets from 2 to {entry['sets']} ({base})")
            continue
        for (before, less), (after, more) in pairwise(found):
            effects.append(check.difference(f"{base} {before} → {after}", more, less, metric, domain, "below"))
        other = check.value(base, entry["below"], domain, metric)
        if other is None:
            missing.append(f"no {metric} of {entry['below']} ({base})")
        else:
            label = f"{base} {entry['scheme']} against {entry['below']}"
            effects.append(check.difference(label, found[-1][1], other, metric, domain, "below"))
    return Finding(effects, missing)


def win_rate(check: Check) -> Finding[Effect]:
    """Compare wins with losses."""
    effects, missing = [], []
    for base in check.entry["bases"]:
        wins, losses = (check.value(base, check.entry["scheme"], "hh", name) for name in ("gpt4_win", "gpt4_lose"))
        if wins is None or losses is None:
            missing.append(f"no win rate of {check.entry['scheme']} ({base})")
        else:
            effects.append(check.difference(f"{base} wins - losses", wins, losses, "gpt4_win", "hh", "above"))
    return Finding(effects, missing)


def ece_and_wins(check: Check) -> Finding[Effect]:
    """Correlate the ECE of reward models with what models aligned by them win against one model."""
    entry, effects, missing = check.entry, [], []
    for base in entry["bases"]:
        points = list(ece_and_win_points(check, base))
        if len(points) < 3:
            missing.append(
                f"fewer than three reward models with an ECE and a win rate against {entry['against']} ({base})"
            )
            continue
        correlation = rank_correlation(np.asarray(points))
        effects.append(Effect(f"{base}, {len(points)} models", "correlation", correlation, None, correlation < 0))
    return Finding(effects, missing)


def rank_correlation(points: NDArray[np.float64]) -> float:
    """Return Spearman's rank correlation of two columns, equal values sharing the mean of their ranks; 0 if one is
    constant.
    """
    ranks = [(column[:, None] > column).sum(1) + (column[:, None] == column).sum(1) / 2 for column in points.T]
    if min(float(np.ptp(rank)) for rank in ranks) == 0:
        return 0.0
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def ece_and_win_points(check: Check, base: str) -> Iterator[tuple[float, float]]:
    """Yield ECE and wins - losses of every reward model on ``base`` that has both."""
    entry = check.entry
    ending = f"_against_{entry['against']}"
    for key, wins in check.results.items():
        if key.metric == "gpt4_win" and key.scheme.endswith(ending) and base in key.base.split(", "):
            ece = check.value(base, key.scheme.removesuffix(ending), entry["domain"], "ece_10")
            losses = check.value(key.base, key.scheme, key.domain, "gpt4_lose")
            if ece is not None and losses is not None:
                yield ece.value, wins.value - losses.value


def apart(check: Check) -> Finding[Effect]:
    """Compare where the rewards of five single-set models lie on one test set."""
    entry, effects, missing = check.entry, [], []
    for base in entry["bases"]:
        means = {name: check.value(base, f"{SINGLE}{name}", entry["domain"], entry["metric"]) for name in FIVE}
        there = {name: value.value for name, value in means.items() if value is not None}
        if len(there) < len(FIVE):
            missing.append(f"no rewards on {entry['domain']} of all five single-set models ({base})")
            continue
        others = [value for name, value in there.items() if name != entry["domain"]]
        centre = fmean(others)
        excess = abs(there[entry["domain"]] - centre) - max(abs(value - centre) for value in others)
        effects.append(Effect(f"{base} {entry['domain']}", entry["metric"], excess, None, excess > 0))
    return Finding(effects, missing)


KINDS: dict[str, Callable[[Check], Finding[Effect]]] = {
    "difference": difference,
    "rest_difference": rest_difference,
    "shrinks": shrinks,
    "sizes": sizes,
    "sets": sets,
    "win_rate": win_rate,
    "ece_and_wins": ece_and_wins,
    "apart": apart,
}


def run_check(check: Check) -> Finding[Effect]:
    """Run one check.

    Raises:
        UserError: for a kind that there is not.
    """
    kind = check.entry["kind"]
    if kind not in KINDS:
        raise UserError(f"paper.yaml: unknown kind of check '{kind}'")
    return KINDS[kind](check)


def _absolute(value: Value) -> Value:
    return Value(abs(value.value), value.error, value.runs)


def _rest(check: Check, base: str, scheme: str, metric: str) -> Value | None:
    parts = [value for domain in REST if (value := check.value(base, scheme, domain, metric))]
    if len(parts) == len(REST):
        return mean_of_domains(parts)
    five, two = (check.value(base, scheme, name, metric) for name in ("mean5", "hh"))
    if five is None or two is None:
        return None
    mean = (len(FIVE) * five.value - len(HH) * two.value) / len(REST)
    known = five.error is not None and two.error is not None
    error = math.hypot(len(FIVE) * (five.error or 0), len(HH) * (two.error or 0)) / len(REST) if known else None
    return Value(mean, error)
