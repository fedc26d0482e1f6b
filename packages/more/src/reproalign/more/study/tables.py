"""``more-rm study tables``: the paper's Tables 1, 2 and 4 to 6, of runs and as printed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from reproalign.common.console import result_console
from reproalign.common.files import csv_text, write_text
from reproalign.common.invocation import Invocation
from reproalign.common.records import Run
from reproalign.common.records.paper import load_paper
from reproalign.more.study.config import TablesConfig
from reproalign.more.study.measured import measured_results
from reproalign.more.study.results import FIVE, HH, ResultKey, Results, Value, in_order, published_results
from reproalign.more.study.runs import read_runs

PACKAGE = "reproalign.more"
SCHEMES = ("raw", "top", "averaging", "multitask", "more")
OUTLIERS = ("outliers_positive", "outliers_positive_mean", "outliers_negative", "outliers_negative_mean")
Rows = list[list[str]]


def tables(config: TablesConfig, invocation: Invocation) -> None:
    """Print and write the tables: ``tables.md``, and every number in ``results.csv``.

    Each row of runs is followed by the printed one where the paper has it; without runs the printed rows alone. An
    error after ± is one standard error: of the bootstrap over pairs for one run, over seeds for several.

    Raises:
        UserError: for runs that cannot be read.
    """
    bases = dict(load_paper(PACKAGE)["bases"])
    runs = read_runs(config.runs, bases)
    ours = measured_results(runs, config, bases)
    published = published_results()
    console, text = result_console(), []
    with Run.open(invocation) as run:
        for title, heads, rows in all_tables(ours, published):
            table = Table(*heads, title=title, header_style="bold", title_justify="left")
            for row in rows:
                table.add_row(*row)
            console.print(table)
            text.append(_markdown(title, heads, rows))
        write_text(run.dir / "tables.md", "\n".join(text))
        write_text(run.dir / "results.csv", results_csv(ours))
        run.set_metrics({_name(key): value.value for key, value in ours.items()})
        console.print(f"tables and numbers: {run.dir}")


def all_tables(ours: Results, published: Mapping[ResultKey, Value]) -> Iterator[tuple[str, list[str], Rows]]:
    """Yield title, column heads and rows of every table that there is something for."""
    accuracy = ["base", "scheme", "", *FIVE, "Avg.", "H&H", "ECE, five", "ECE, H&H", "of a calibrated RM, H&H"]
    yield "Table 2, and 1: accuracy (%) and ECE (10 bins)", accuracy, list(_rows(ours, published, _accuracy_row))
    aligned = ["base", "scheme", "", "perplexity, helpful", "perplexity, harmless", "win", "tie", "lose (%)"]
    yield "Table 1: aligned language models", aligned, list(_rows(ours, published, _aligned_row))
    heads = ["base", "scheme", "", *(f"{domain} {sign}" for domain in FIVE for sign in ("right", "wrong"))]
    yield "Tables 4 to 6: outliers, number and mean", heads, list(_rows(ours, published, _outliers_row))


def results_csv(results: Results) -> str:
    """Return one line for each number: base, scheme, domain, metric, value, standard error, runs."""
    header = ["base", "scheme", "domain", "metric", "value", "error", "runs"]
    rows = (
        [key.base, key.scheme, key.domain, key.metric, f"{entry.value:.6g}", _plain(entry.error), entry.runs]
        for key, entry in results.items()
    )
    return csv_text(header, rows)


def _rows(ours: Results, published: Mapping[ResultKey, Value], make: Any) -> Iterator[list[str]]:
    """Yield ours and then the printed row of every base and scheme of ours, or all printed rows if there are none."""
    wanted = ours or published
    bases = list(dict.fromkeys(key.base for key in wanted))
    for base in bases:
        for scheme in in_order((key.scheme for key in wanted if key.base == base), SCHEMES):
            for label, results in (("here", ours), ("paper", published)):
                cells = make(results, base, scheme)
                if any(cells):
                    yield [base, scheme, label, *cells]


def _accuracy_row(results: Mapping[ResultKey, Value], base: str, scheme: str) -> list[str]:
    def cell(domain: str, metric: str, scale: float, digits: int) -> str:
        return _cell(results.get(ResultKey(base, scheme, domain, metric)), scale, digits)

    accuracies = [cell(domain, "accuracy", 100.0, 2) for domain in (*FIVE, "mean5", "hh")]
    return [
        *accuracies,
        *(cell(domain, "ece_10", 1.0, 4) for domain in ("mean5", "hh")),
        cell("hh", "ece_10_calibrated", 1.0, 4),
    ]


def _aligned_row(results: Mapping[ResultKey, Value], base: str, scheme: str) -> list[str]:
    perplexities = [_cell(results.get(ResultKey(base, scheme, domain, "answer_perplexity")), 1.0, 2) for domain in HH]
    rates = ("gpt4_win", "gpt4_tie", "gpt4_lose")
    return [*perplexities, *(_cell(results.get(ResultKey(base, scheme, "hh", name)), 100.0, 0) for name in rates)]


def _outliers_row(results: Mapping[ResultKey, Value], base: str, scheme: str) -> list[str]:
    cells = []
    for domain in FIVE:
        found = [results.get(ResultKey(base, scheme, domain, name)) for name in OUTLIERS]
        for count, mean in (found[:2], found[2:]):
            text = "" if count is None else f"{count.value:g}"
            cells.append(text if mean is None else f"{text} ({mean.value:.3f})")
    return cells


def _cell(entry: Value | None, scale: float, digits: int) -> str:
    if entry is None:
        return ""
    text = f"{scale * entry.value:.{digits}f}"
    return text if entry.error is None else f"{text} ± {scale * entry.error:.{digits}f}"


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _name(key: ResultKey) -> str:
    return "/".join((key.base, key.scheme, key.domain, key.metric))


def _markdown(title: str, heads: Sequence[str], rows: Rows) -> str:
    lines = [f"**{title}**", "", f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"
