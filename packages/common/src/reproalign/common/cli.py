"""The ``reproalign`` command: what spans papers: merging, benchmark suites, judging, and records of runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.filesize import decimal
from rich.table import Column, Table

from reproalign.common.command.app import App, WordParser, run
from reproalign.common.console import result_console, say, track
from reproalign.common.errors import UserError, first_line
from reproalign.common.verbs import EVALUATE_SUITE, JUDGE, MERGE, MT_BENCH

APP = App(
    command="reproalign",
    package="reproalign.common",
    distribution="reproalign-common",
    title="what spans the papers: merging, benchmark suites, win rates, records of runs",
    verbs=(MERGE, EVALUATE_SUITE, JUDGE, MT_BENCH),
    more=(
        (
            "list",
            "list the papers that are installed, and recipes by a word",
            "reproalign.common.command.papers:papers",
        ),
        ("doctor", "say what this machine and this environment can do", "reproalign.common.command.doctor:doctor"),
        ("show", "print one record, or several side by side", "reproalign.common.cli:show"),
        ("verify", "say whether two runs agree, number by number and file by file", "reproalign.common.cli:verify"),
        ("check", "say whether runs, checkpoints and caches are as they were written", "reproalign.common.cli:check"),
        ("replay", "run a record again, then verify the two", "reproalign.common.cli:replay"),
        ("tokens", "print the first training rows of a record as tokens", "reproalign.common.cli:tokens"),
        ("push", "push a finished run's model to the Hugging Face Hub, with its card", "reproalign.common.cli:push"),
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out ``reproalign …``; exit code 0 agreed or done, 1 disagreed, 2 the user's mistake."""
    return run(APP, argv)


def show(argv: Sequence[str]) -> int:
    """``reproalign show RUN …``."""
    parser = WordParser(prog="reproalign show", description="Print one record, or several side by side.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder or run.json")
    parser.add_argument("--all", action="store_true", help="of one record every key, not only what is no default")
    return _show(parser.parse_args(argv))


def verify(argv: Sequence[str]) -> int:
    """``reproalign verify LEFT RIGHT``."""
    parser = WordParser(
        prog="reproalign verify", description="Say whether two runs agree, number by number and file by file."
    )
    words = "run folder, whose files are checked too, or run.json, which is compared alone"
    parser.add_argument("left", type=Path, help=words)
    parser.add_argument("right", type=Path, help=words)
    parser.add_argument("--tolerance", type=float, default=0.0, help="relative, absolute below 1 (default: exact)")
    parser.add_argument("--ignore", action="append", default=[], metavar="NAME", help="a metric, 'weights' or 'data'")
    return _verify(parser.parse_args(argv))


def check(argv: Sequence[str]) -> int:
    """``reproalign check PATH …``."""
    parser = WordParser(
        prog="reproalign check",
        description="Say whether runs, models and caches are as they were written.",
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a folder, with all that lies below it")
    parser.add_argument("--accept", action="store_true", help="take what is there now for what was written")
    return _check(parser.parse_args(argv))


def replay(argv: Sequence[str]) -> int:
    """``reproalign replay RUN``."""
    parser = WordParser(prog="reproalign replay", description="Run a record again, then verify the two.")
    parser.add_argument("run", type=Path, help="run folder or run.json")
    parser.add_argument(
        "--output-dir", type=Path, help="where to (default: beside the run, with -replay behind its name)"
    )
    parser.add_argument("--tolerance", type=float, default=0.0, help="relative, absolute below 1 (default: exact)")
    return _replay(parser.parse_args(argv))


def tokens(argv: Sequence[str]) -> int:
    """``reproalign tokens RUN``."""
    from reproalign.common.command.tokens import ROWS, show_tokens
    from reproalign.common.records.folder import read_record
    from reproalign.common.records.record import recorded_invocation

    parser = WordParser(prog="reproalign tokens", description="Print the first training rows of a record as tokens.")
    parser.add_argument("run", type=Path, help="run folder or run.json")
    parser.add_argument("--rows", type=int, default=ROWS, help=f"how many (default: {ROWS})")
    given = parser.parse_args(argv)
    if given.rows < 1:
        raise UserError(f"--rows={given.rows} must be at least 1")
    record = read_record(given.run)
    show_tokens(recorded_invocation(record), given.rows)
    recorded = (record.get("tokens") or {}).get("sha256")
    print(f"recorded by {given.run}: {recorded or 'nothing (made by an earlier version)'}")
    return 0


def push(argv: Sequence[str]) -> int:
    """``reproalign push RUN ORG/NAME``."""
    from reproalign.common.records import hub

    parser = WordParser(prog="reproalign push", description="Push a finished run's model with its card and its record.")
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("repo", metavar="ORG/NAME", help="where to; made if there is no such repository")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--folder", help="which model, of a run that made several")
    parser.add_argument("--base", metavar="ORG/NAME", help="base of an adapter trained on a local folder")
    given = parser.parse_args(argv)
    hub.check_push(given.repo, "repository")
    print(f"pushed: {hub.push(given.run, given.repo, private=given.private, folder=given.folder, base=given.base)}")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from reproalign.common.records.folder import read_record
    from reproalign.common.records.lineage import family_tree
    from reproalign.common.records.show import record_table

    records = {str(path): read_record(path) for path in arguments.runs}
    console = result_console()
    if len(records) == 1:
        console.print(next(iter(records.values()))["command"], soft_wrap=True)
    console.print(record_table(records, everything=arguments.all))
    for path, record in records.items():
        folder = Path(path)
        tree = family_tree(folder if folder.is_dir() else folder.parent, record)
        if tree is not None:
            console.print(tree)
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from reproalign.common.records.checking import file_problems
    from reproalign.common.records.folder import read_record

    if arguments.tolerance < 0:
        raise UserError(f"--tolerance={arguments.tolerance} is negative")
    sides = (arguments.left, arguments.right)
    left, right = map(read_record, sides)
    code = _report(left, right, arguments.tolerance, tuple(arguments.ignore))
    problems = [problem for side in sides if side.is_dir() for problem in file_problems(side)]
    for problem in problems:
        say(problem)
    if any(side.is_dir() for side in sides):
        say(f"files: {f'{len(problems)} missing or altered' if problems else 'as the runs wrote them'}")
    return 1 if problems else code


def _check(arguments: argparse.Namespace) -> int:
    from reproalign.common.records.checking import accept, check_sealed, sealed_in

    sealed = list(dict.fromkeys(found for path in arguments.paths for found in sealed_in(path)))
    count = bad = 0
    for path in track(sealed, "checking"):
        if arguments.accept:
            accept(path)
        findings = list(check_sealed(path))
        problems = [finding.problem for finding in findings if finding.problem]
        for problem in problems:
            say(f"damaged  {problem}")
        if not problems:
            say(f"whole    {path} ({len(findings)} files, {decimal(sum(finding.bytes for finding in findings))})")
        count, bad = count + len(findings), bad + len(problems)
    say(f"{count - bad} files are as they were written, {bad} are altered, missing or not readable")
    return 1 if bad else 0


def _report(left: dict[str, Any], right: dict[str, Any], tolerance: float, ignore: tuple[str, ...] = ()) -> int:
    from reproalign.common.records.compare import compare
    from reproalign.common.records.show import texts

    result = compare(left, right, tolerance=tolerance, ignore=ignore)
    console = result_console()
    if result.ignored:
        console.print(f"ignored: {', '.join(result.ignored)}", style="dim")
    if result.differing:
        table = Table(*(Column(name, overflow="fold") for name in ("differs", "left", "right")), header_style="bold")
        for key, first, second in result.differing:
            table.add_row(key, *texts(first, second))
        console.print(table)
    if not result.agreed and not result.differing:
        raise UserError("the records hold nothing to compare (no metrics, no fingerprints); were the runs finished?")
    console.print(f"{len(result.agreed)} agree, {len(result.differing)} differ (tolerance {tolerance:g})")
    return 1 if result.differing else 0


def _replay(arguments: argparse.Namespace) -> int:
    from reproalign.common.launch.start import start
    from reproalign.common.records.environment import package_versions
    from reproalign.common.records.folder import read_record
    from reproalign.common.records.record import recorded_invocation

    record = read_record(arguments.run)
    folder = arguments.run if arguments.run.is_dir() else arguments.run.parent  # wherever the command is given
    folder = folder if folder.name else folder.resolve()
    target = arguments.output_dir or folder.with_name(f"{folder.name}-replay")
    for name, was in record.get("versions", {}).items():
        now = package_versions(record["package"]).get(name, "not installed")
        if now != was:
            print(f"reproalign: note: {name} is {now}, the record was made with {was}", file=sys.stderr)
    resume = {"resume": "auto"} if "resume" in record["config"] else {}
    unpushed = {"hub": {"push": None, "private": False}} if "hub" in record["config"] else {}
    recorded = recorded_invocation(record)
    invocation = replace(
        recorded,
        command=[*recorded.command, f"output_dir={target}"],
        config={**recorded.config, "output_dir": str(target), **resume, **unpushed},
    )
    _check_options(record)
    code = start(invocation, dry_run=False)
    return code or _report(record, read_record(target), arguments.tolerance)


def _check_options(record: dict[str, Any]) -> None:
    """Refuse a record whose options this version has not.

    Raises:
        UserError: naming the version that can replay it.
    """
    from reproalign.common.invocation import read_back

    try:
        read_back(record["schema"], record["config"])
    except (UserError, ImportError, AttributeError, KeyError) as error:
        made = record.get("versions", {}).get("reproalign-common", "unknown")
        commit = (record.get("git") or {}).get("commit")
        raise UserError(
            f"the record's options are not this version's ({first_line(error)}); replay it with version {made} of "
            f"reproalign{f', commit {commit}' if commit else ''}"
        ) from error


if __name__ == "__main__":
    raise SystemExit(main())
