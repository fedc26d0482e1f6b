"""``radpo leaderboard``: the win rates that ``alpaca_eval evaluate`` wrote, beside the paper's Table 1."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from reproalign.common.command.app import WordParser
from reproalign.common.console import result_console
from reproalign.common.errors import UserError
from reproalign.common.files import read_text
from reproalign.radpo.published import published

RATES = {"win_rate": "standard_error", "length_controlled_winrate": "lc_standard_error"}  # column -> its error's
Rates = dict[str, tuple[float, float | None]]  # column -> percent, and its standard error where it is given


def leaderboard_command(argv: Sequence[str]) -> int:
    """``radpo leaderboard FILE.csv [FILE.csv …] [--published]``: print win rates and length-controlled ones."""
    parser = WordParser(prog="radpo leaderboard", description="Win rates of AlpacaEval, plain and length-controlled.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.csv", help="leaderboard.csv of alpaca_eval")
    parser.add_argument("--published", action="store_true", help="the paper's Table 1 beside")
    arguments = parser.parse_args(argv)
    rows = [(name, rates) for file in arguments.files for name, rates in read_leaderboard(file).items()]
    if arguments.published:
        rows += [(f"published: {name}", rates) for name, rates in table1().items()]
    table = Table("model", "win rate (%)", "length-controlled (%)", header_style="bold")
    for name, rates in rows:
        table.add_row(name, *(_shown(rates.get(column)) for column in RATES))
    result_console().print(table)
    return 0


def read_leaderboard(path: Path) -> dict[str, Rates]:
    """Read AlpacaEval's leaderboard: generator -> rates.

    Raises:
        UserError: if it is no such file, naming what is missing.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the leaderboard.csv that `alpaca_eval evaluate` wrote")
    rows = list(csv.DictReader(io.StringIO(read_text(path), newline="")))
    if not rows or "win_rate" not in rows[0] or "" not in rows[0]:
        raise UserError(f"{path}: not AlpacaEval's leaderboard (columns: name, win_rate, …); give its leaderboard.csv")
    found: dict[str, Rates] = {}
    for row in rows:
        try:
            found[row[""]] = {
                column: (float(row[column]), float(row[error]) if row.get(error) else None)
                for column, error in RATES.items()
                if row.get(column)
            }
        except ValueError as problem:
            raise UserError(f"{path}, {row['']}: {problem}; give the leaderboard.csv as it was written") from problem
    return found


def table1() -> dict[str, Rates]:
    """Return the paper's Table 1: method -> rates."""
    found: dict[str, Rates] = {}
    for row in published():
        if row["figure"] == "table 1":
            form = {"true": "2", "false": "1"}.get(row["second_form"], "")
            rates = found.setdefault(f"{row['loss']}{form}", {})
            rates[row["metric"].removeprefix("alpaca_eval/")] = (float(row["value"]), float(row["plus_minus"]))
    return found


def _shown(rate: tuple[float, float | None] | None) -> str:
    if rate is None:
        return ""
    return f"{rate[0]:.1f}" if rate[1] is None else f"{rate[0]:.1f} ± {rate[1]:.1f}"
