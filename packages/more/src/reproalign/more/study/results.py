"""Numbers of reward models by base, scheme, domain and metric: the paper's, and those of runs, in one form."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from statistics import fmean, stdev

HH = ("helpful", "harmless")
FIVE = (*HH, "oasst1", "webgpt", "summarize")
MEANS = {"hh": HH, "mean5": FIVE}  # name of a mean over domains -> which
SINGLE = "single-"  # scheme of a reward model trained on the domain whose name follows
TOP = "top"  # every domain by the reward model that was trained on it alone


@dataclass(frozen=True)
class ResultKey:
    """What a number is of: ``base`` model, ``scheme`` of training (more, multitask, top, …), ``domain``, ``metric``."""

    base: str
    scheme: str
    domain: str
    metric: str


@dataclass(frozen=True)
class Value:
    """A number, its standard error if it is known, and how many runs it is the mean of."""

    value: float
    error: float | None = None
    runs: int = 1


Results = dict[ResultKey, Value]


@cache
def published_results() -> Mapping[ResultKey, Value]:
    """Return every number of the paper's Tables 1 to 6.

    Accuracies and win rates are fractions, perplexities and means of outliers plain numbers. Decimals were cut and not
    rounded: an accuracy lies in [x, x + .0001). No standard error is printed. Beside ``hh`` and ``mean5`` as printed
    (``accuracy_printed`` for the column "Avg."), ``accuracy_of_row`` is the mean of the row's five cells.
    """
    text = files("reproalign.more.study").joinpath("published.csv").read_text(encoding="utf-8")
    found = {}
    for row in csv.DictReader(text.splitlines()):
        key = ResultKey(row["base"], row["scheme"], row["domain"], row["metric"])
        found[key] = Value(float(row["value"]))
    for base, scheme in {(key.base, key.scheme) for key in found}:
        printed = found.get(ResultKey(base, scheme, "mean5", "accuracy_of_row"))
        if printed is not None:
            found[ResultKey(base, scheme, "mean5", "accuracy")] = printed
    return with_means(found)


def mean_value(values: Sequence[Value]) -> Value:
    """Average independent repetitions (seeds): the error is that of their spread, or of the one there is."""
    if len(values) == 1:
        return values[0]
    numbers = [entry.value for entry in values]
    return Value(fmean(numbers), stdev(numbers) / math.sqrt(len(numbers)), len(numbers))


def mean_of_domains(values: Sequence[Value]) -> Value:
    """Average domains, each counting the same; their errors are independent."""
    errors = [entry.error for entry in values]
    known = [error for error in errors if error is not None]
    error = math.hypot(*known) / len(values) if len(known) == len(values) else None
    return Value(fmean(entry.value for entry in values), error, min(entry.runs for entry in values))


def with_means(results: Mapping[ResultKey, Value]) -> Results:
    """Add the means over helpful and harmless (``hh``) and over all five, where all of their domains are there."""
    found = dict(results)
    for key in results:
        for name, domains in MEANS.items():
            parts = [results.get(ResultKey(key.base, key.scheme, domain, key.metric)) for domain in domains]
            there = [part for part in parts if part is not None]
            if key.domain in domains and len(there) == len(domains):
                found.setdefault(ResultKey(key.base, key.scheme, name, key.metric), mean_of_domains(there))
    return found


def with_top(results: Mapping[ResultKey, Value]) -> Results:
    """Add the scheme ``top``: of every domain what the model trained on it alone has."""
    found = dict(results)
    for key, value in results.items():
        if key.scheme == f"{SINGLE}{key.domain}":
            found.setdefault(ResultKey(key.base, TOP, key.domain, key.metric), value)
    return found


def in_order(names: Iterable[str], first: Sequence[str]) -> list[str]:
    """Return the different names, those of ``first`` in its order and then the others as they come."""
    given = list(dict.fromkeys(names))
    return [name for name in first if name in given] + [name for name in given if name not in first]
