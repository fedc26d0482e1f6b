"""The ``reproalign`` command: what spans papers: merging, benchmark suites, judging, and records of runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from reproalign.common.command.app import App, WordParser, run
from reproalign.common.errors import UserError, first_line
from reproalign.common.verbs import EVALUATE_SUITE, JUDGE, MERGE, MT_BENCH

APP = App(
    command="reproalign",
    package="reproalign.common",
    distribution="reproalign-common",
    title="what spans the papers: merging, benchmark suites, win rates, records of runs",
    verbs=(MERGE, EVALUATE_SUITE, JUDGE, MT_BENCH),
    more=(
        ("show", "print one record, or several side by side", "reproalign.common.cli:show"),
        ("verify", "say whether two records agree, number by number", "reproalign.common.cli:verify"),
        ("replay", "run a record again, then verify the two", "reproalign.common.cli:replay"),
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out ``reproalign …``; exit code 0 agreed or done, 1 disagreed, 2 the user's mistake."""
    return run(APP, argv)


def show(argv: Sequence[str]) -> int:
    """``reproalign show RUN …``."""
    parser = WordParser(prog="reproalign show", description="Print one record, or several side by side.")
    parser.add_argument("runs", nargs="+", type=Path, help="run folder or run.json")
    return _show(parser.parse_args(argv))


def verify(argv: Sequence[str]) -> int:
    """``reproalign verify LEFT RIGHT``."""
    parser = WordParser(prog="reproalign verify", description="Say whether two records agree, number by number.")
    parser.add_argument("left", type=Path, help="run folder or run.json")
    parser.add_argument("right", type=Path, help="run folder or run.json")
    parser.add_argument("--tolerance", type=float, default=0.0, help="relative, absolute below 1 (default: exact)")
    parser.add_argument("--ignore", action="append", default=[], metavar="NAME", help="a metric, 'weights' or 'data'")
    return _verify(parser.parse_args(argv))


def replay(argv: Sequence[str]) -> int:
    """``reproalign replay RUN``."""
    parser = WordParser(prog="reproalign replay", description="Run a record again, then verify the two.")
    parser.add_argument("run", type=Path, help="run folder or run.json")
    parser.add_argument("--output-dir", type=Path, help="where to (default: the run's own, with -replay behind it)")
    parser.add_argument("--tolerance", type=float, default=0.0, help="relative, absolute below 1 (default: exact)")
    return _replay(parser.parse_args(argv))


def _show(arguments: argparse.Namespace) -> int:
    from reproalign.common.mappings import flatten
    from reproalign.common.records.lineage import family_tree
    from reproalign.common.records.run import read_record

    records = [read_record(path) for path in arguments.runs]
    table = Table("", *(str(path) for path in arguments.runs), header_style="bold")
    for key in (
        "status",
        "command",
        "recipe",
        "started",
        "wall_seconds",
        "processes",
        "strategy",
        "git",
        "resumptions",
    ):
        table.add_row(key, *(_text(record.get(key)) for record in records))
    table.add_row("hardware", *(_hardware(record.get("hardware", {})) for record in records))
    table.add_row("peak memory", *(_memory(record.get("peak_memory") or {}) for record in records))
    _add_section(table, "metrics", [flatten(record.get("metrics", {})) for record in records])
    prints = [
        {
            f"{kind}.{name}": entry["sha256"][:16]
            for kind, entries in record.get("fingerprints", {}).items()
            for name, entry in entries.items()
        }
        for record in records
    ]
    _add_section(table, "fingerprints", prints)
    configs = [flatten(record["config"]) for record in records]
    if len(records) > 1:
        keys = {key for config in configs for key in config if any(other.get(key) != config[key] for other in configs)}
        configs = [{key: config.get(key) for key in sorted(keys)} for config in configs]
    _add_section(table, "configuration" if len(records) == 1 else "configuration (differences)", configs)
    Console().print(table)
    for path, record in zip(arguments.runs, records, strict=True):
        tree = family_tree(path if path.is_dir() else path.parent, record)
        if tree is not None:
            Console().print(tree)
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from reproalign.common.records.run import read_record

    if arguments.tolerance < 0:
        raise UserError(f"--tolerance={arguments.tolerance} is negative")
    return _report(
        read_record(arguments.left), read_record(arguments.right), arguments.tolerance, tuple(arguments.ignore)
    )


def _report(left: dict[str, Any], right: dict[str, Any], tolerance: float, ignore: tuple[str, ...] = ()) -> int:
    from reproalign.common.records.compare import compare

    result = compare(left, right, tolerance=tolerance, ignore=ignore)
    console = Console(highlight=False)
    if result.set_aside:
        console.print(f"set aside: {', '.join(result.set_aside)}", style="dim")
    if result.differing:
        table = Table("differs", "left", "right", header_style="bold")
        for key, first, second in result.differing:
            table.add_row(key, _text(first), _text(second))
        console.print(table)
    if not result.agreed and not result.differing:
        raise UserError("the records hold nothing to compare (no metrics, no fingerprints); were the runs finished?")
    console.print(f"{len(result.agreed)} agree, {len(result.differing)} differ (tolerance {tolerance:g})")
    return 1 if result.differing else 0


def _replay(arguments: argparse.Namespace) -> int:
    import shlex

    from reproalign.common.invocation import Invocation
    from reproalign.common.launch import start
    from reproalign.common.records.environment import package_versions
    from reproalign.common.records.run import read_record

    record = read_record(arguments.run)
    folder = Path(record["config"]["output_dir"])
    target = arguments.output_dir or folder.with_name(f"{folder.name}-replay")
    for name, was in record.get("versions", {}).items():
        now = package_versions(record["package"]).get(name, "not installed")
        if now != was:
            print(f"reproalign: note: {name} is {now}, the record was made with {was}", file=sys.stderr)
    resume = {"resume": "auto"} if "resume" in record["config"] else {}
    invocation = Invocation(
        command=[*shlex.split(record["command"]), f"output_dir={target}"],
        package=record["package"],
        verb=record["verb"],
        schema=record["schema"],
        target=record["target"],
        config={**record["config"], "output_dir": str(target), **resume},
        recipe=record.get("recipe"),
    )
    _check_options(record)
    code = start(invocation, dry_run=False)
    return code or _report(record, read_record(target), arguments.tolerance)


def _check_options(record: dict[str, Any]) -> None:
    """Refuse a record whose options this version has not.

    Raises:
        UserError: naming the version that can replay it.
    """
    from omegaconf.errors import OmegaConfBaseException

    from reproalign.common.invocation import structured

    try:
        structured(record["schema"], record["config"])
    except (OmegaConfBaseException, UserError, ImportError, AttributeError, KeyError) as error:
        made = record.get("versions", {}).get("reproalign-common", "unknown")
        commit = (record.get("git") or {}).get("commit")
        raise UserError(
            f"the record's options are not this version's ({first_line(error)}); replay it with version {made} of "
            f"reproalign{f', commit {commit}' if commit else ''}"
        ) from error


def _add_section(table: Table, title: str, columns: list[dict[str, Any]]) -> None:
    table.add_section()
    table.add_row(f"[bold]{title}[/]")
    for key in dict.fromkeys(key for column in columns for key in column):
        table.add_row(key, *(_text(column.get(key, "")) for column in columns))


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else "" if value is None else str(value)


def _hardware(facts: dict[str, Any]) -> str:
    names = [entry["name"] for entry in facts.get("accelerators", [])]
    return ", ".join(names) if names else f"{facts.get('cpu', '')} ({facts.get('cores', '?')} cores)"


def _memory(peak: dict[str, int]) -> str:
    return ", ".join(f"{name.removesuffix('_bytes')} {value / 2**30:.2f} GiB" for name, value in peak.items())


if __name__ == "__main__":
    raise SystemExit(main())
