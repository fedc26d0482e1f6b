"""``radpo outcomes``: wins, ties and losses of judged models as stacked bars, with a test (the paper's Figure 14)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from scipy.stats import binomtest

from reproalign.common.command.app import WordParser
from reproalign.common.console import result_console, say
from reproalign.common.errors import UserError
from reproalign.common.evaluation.plots import outcomes
from reproalign.common.records.folder import read_record
from reproalign.radpo.published import published

Counts = tuple[int, int, int]


def outcomes_command(argv: Sequence[str]) -> int:
    """``radpo outcomes [JUDGED …] --output FILE.png [--published]``: draw the bars, and print counts and tests."""
    parser = WordParser(prog="radpo outcomes", description="Wins, ties and losses of judged models, with a sign test.")
    parser.add_argument("runs", nargs="*", type=Path, metavar="JUDGED", help="folder of a run of `radpo judge`")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE.png", help="where the figure goes")
    parser.add_argument("--published", action="store_true", help="the paper's bars (Figure 14) beside")
    arguments = parser.parse_args(argv)
    if arguments.output.suffix.lower() != ".png":
        raise UserError(f"--output={arguments.output} must end in .png")
    if len({folder.name for folder in arguments.runs}) < len(arguments.runs):
        raise UserError("two runs have one name, which is what their bars are called; rename a folder")
    bars = {folder.name: _counts(folder) for folder in arguments.runs}
    if arguments.published:
        bars |= published_bars()
    if not bars:
        raise UserError("there is nothing to draw; give runs of `radpo judge`, or --published")
    tests = {label: sign_test(counts) for label, counts in bars.items()}
    outcomes(bars, arguments.output, notes={label: f"p = {p:.2g}" for label, p in tests.items()})
    table = Table("", "win", "tie", "lose", "margin", "p (sign test)", header_style="bold")
    for label, counts in bars.items():
        margin = 100 * (counts[0] - counts[2]) / sum(counts)
        table.add_row(label, *map(str, counts), f"{margin:+.1f} %", f"{tests[label]:.3f}")
    result_console().print(table)
    say(f"figure: {arguments.output}")
    return 0


def sign_test(counts: Counts) -> float:
    """Return the exact two-sided p value of the wins among wins and losses, were both as likely; ties say nothing."""
    win, _, lose = counts
    return float(binomtest(win, win + lose).pvalue) if win + lose else 1.0


def published_bars() -> dict[str, Counts]:
    """Return the paper's: label -> wins, ties, losses of Ra-DPO2."""
    found: dict[str, dict[str, int]] = {}
    for row in published():
        if row["figure"] == "14":
            kind, _, opponent = row["metric"].removeprefix("judged/").partition(" against ")
            found.setdefault(opponent, {})[kind] = int(row["value"])
    return {
        f"published: Ra-DPO2 against {opponent}": (counts["win"], counts["tie"], counts["lose"])
        for opponent, counts in found.items()
    }


def _counts(folder: Path) -> Counts:
    metrics = read_record(folder).get("metrics", {})
    counts = [metrics.get(name) for name in ("wins", "ties", "losses")]
    if not all(isinstance(count, int) for count in counts) or not sum(counts):
        raise UserError(f"{folder}: no wins, ties and losses there; give runs of `radpo judge` that are finished")
    return (counts[0], counts[1], counts[2])
