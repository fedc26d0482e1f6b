"""``ama study proposition``: Proposition 5.1 simulated, output averaging and weight averaging, beside closed forms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from rich.table import Table

from reproalign.ama.study.config import PropositionConfig
from reproalign.ama.study.features import DISJOINT, FORMS, OUTPUT, SINGLE, WEIGHT, Accuracy, Setting, simulate
from reproalign.common.console import result_console, say, track
from reproalign.common.errors import UserError
from reproalign.common.evaluation.plots.canvas import colours_of, legend_below, panels_of, save
from reproalign.common.files import csv_text, write_json, write_text
from reproalign.common.invocation import Invocation
from reproalign.common.records import Run

Found = Sequence[tuple[Setting, Mapping[str, Accuracy]]]
_CLEAR = 2.0  # standard errors
_HEADER = ["classes", "p", "features", "overlap", "form", "accuracy", "stderr", "closed", "gain", "gain_stderr"]


def proposition(config: PropositionConfig, invocation: Invocation) -> None:
    """Simulate the accuracy of averages for every combination of the settings.

    The proposition is about ξ1, the gain of averaging two models of similar tasks, and ξ2, that of disjoint ones. Its
    closed form for ξ1 is that of averaging outputs; averaging weights, as its Definition F.2 has it, loses where
    n/2 < n_o < n, and ξ2 is at most 0. Written are ``proposition.csv``, ``proposition.json`` and
    ``plots/proposition.png``.

    Raises:
        UserError: for a setting out of its range, or overlaps that are all above the number of features.
    """
    settings = _settings(config)
    with Run.open(invocation) as run:
        found = [(setting, simulate(setting, config.samples, config.seed)) for setting in track(settings, "simulating")]
        _report(found, run)


def _settings(config: PropositionConfig) -> list[Setting]:
    for key in ("classes", "p", "features", "overlap"):
        values = getattr(config, key)
        if len(set(values)) < max(1, len(values)):
            raise UserError(f"{key}={list(values)} must be one or more different values")
    most = max(config.features)
    above = [value for value in config.overlap if value > most]
    if above:
        raise UserError(f"overlap={list(config.overlap)}: {above[0]} is above the number of features {most}")
    combined = product(config.classes, config.p, config.features, config.overlap)
    return [Setting(*found) for found in combined if found[3] <= found[2]]


def _report(found: Found, run: Run) -> None:
    console = result_console()
    rows = list(_rows(found))
    console.print(_table(found))
    for line in _sentences(found):
        console.print(f"- {line}")
    write_text(run.dir / "proposition.csv", csv_text(_HEADER, rows))
    plain = [{**asdict(setting), **{name: asdict(value) for name, value in forms.items()}} for setting, forms in found]
    write_json(run.dir / "proposition.json", plain)
    _draw(found, run.dir / "plots" / "proposition.png")
    run.set_metrics(
        {
            f"{name}/K{setting.classes}-p{setting.p:g}-n{setting.features}-o{setting.overlap}": forms[name].value
            for setting, forms in found
            for name in FORMS
        }
    )
    say(f"record, proposition.csv, proposition.json and plot: {run.dir}")


def _table(found: Found) -> Table:
    table = Table("K, p, n, n_o", *FORMS, header_style="bold", title="accuracy ± standard error, closed form below")
    for setting, forms in found:
        name = f"{setting.classes}, {setting.p:g}, {setting.features}, {setting.overlap}"
        cells = [f"{forms[form].value:.4f} ± {forms[form].stderr:.4f}\n{forms[form].closed:.4f}" for form in FORMS]
        table.add_row(name, *cells)
    return table


def _rows(found: Found) -> Iterator[list[Any]]:
    for setting, forms in found:
        for name, value in forms.items():
            yield [*asdict(setting).values(), name, *asdict(value).values()]


def _sentences(found: Found) -> Iterator[str]:
    """Yield what the settings say of the proposition's two gains and their order."""
    for name, words in (
        (OUTPUT, "averaging outputs"),
        (WEIGHT, "averaging weights"),
        (DISJOINT, "averaging weights, disjoint tasks"),
    ):
        signs = [_sign(forms[name]) for _, forms in found]
        counts = ", ".join(f"{signs.count(sign)} {sign}" for sign in ("gains", "losses", "undecided"))
        yield f"{words}: {counts} of {len(signs)} settings, at {_CLEAR:g} standard errors"
    wrong = sum(forms[WEIGHT].value < forms[DISJOINT].value - _CLEAR * forms[WEIGHT].stderr for _, forms in found)
    yield f"ξ1 ≥ ξ2 for averaged weights: violated in {wrong} of {len(found)} settings"
    gaps = [abs(value.value - value.closed) for _, forms in found for value in forms.values()]
    yield f"the closed forms are off by at most {max(gaps):.3f}"


def _sign(value: Accuracy) -> str:
    if abs(value.gain) <= _CLEAR * value.gain_stderr:
        return "undecided"
    return "gains" if value.gain > 0 else "losses"


def _draw(found: Found, path: Path) -> None:
    """Draw the accuracies over n_o, a panel for each K, p and n: dots simulated, lines the closed forms."""
    panels: dict[tuple[int, float, int], list[tuple[Setting, Mapping[str, Accuracy]]]] = {}
    for setting, forms in found:
        panels.setdefault((setting.classes, setting.p, setting.features), []).append((setting, forms))
    figure, axes = panels_of(len(panels), 4.6, 3.6, below=0.5)
    handles = {}
    for axis, ((classes, p, features), entries) in zip(axes, panels.items(), strict=True):
        places = [setting.overlap for setting, _ in entries]
        order = sorted(range(len(places)), key=places.__getitem__)
        for name, colour in colours_of((SINGLE, OUTPUT, WEIGHT, DISJOINT)).items():
            values = [entries[index][1][name] for index in order]
            x = [places[index] for index in order]
            axis.plot(x, [value.closed for value in values], color=colour, linewidth=1)
            errors = [2 * value.stderr for value in values]
            handles[name] = axis.errorbar(
                x, [value.value for value in values], errors, color=colour, fmt="o", markersize=4
            )
        axis.set(title=f"K = {classes}, p = {p:g}, n = {features}", xlabel="shared features", ylabel="accuracy")
        axis.grid(alpha=0.3)
    legend_below(figure, handles, 4)
    save(figure, path)
