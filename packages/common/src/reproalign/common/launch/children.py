"""Runs that a run starts: each a command line of its own, with a folder and a resumable record below the parent's."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reproalign.common.config.launch import LaunchConfig
from reproalign.common.errors import ReportedError, UserError
from reproalign.common.files import sha256_file, write_json
from reproalign.common.integrity import SMALL, examine
from reproalign.common.invocation import Invocation, Verb
from reproalign.common.launch.plan import Hardware, check
from reproalign.common.launch.start import wait_for
from reproalign.common.manifests import RECORD, is_sealed
from reproalign.common.mappings import flatten
from reproalign.common.options.compose import compose
from reproalign.common.options.words import as_word
from reproalign.common.records.folder import check_folder, read_record, same_run
from reproalign.common.records.run import Run


@dataclass(frozen=True)
class Child:
    """A run to be started.

    Attributes:
        name: its folder, below the parent's.
        invocation: what it is to do.
    """

    name: str
    invocation: Invocation


def plan_child(parent: Invocation, name: str, verb: Verb, words: Sequence[str]) -> Child:
    """Compose a child of ``parent``: the verb ``verb`` of the same command, with ``words`` as a user would type them.

    Args:
        parent: of whose ``output_dir`` the child's is the subfolder ``name``.
        name: of the child.
        verb: what the child does.
        words: ``key=value``.

    Raises:
        UserError: for anything wrong in the words, naming the child.
    """
    folder = Path(parent.config["output_dir"]) / name
    words = [*words, as_word("output_dir", str(folder))]
    with naming(name):
        composed = compose(parent.package, verb.config_name, verb.schema, words)
    invocation = Invocation(
        command=[parent.command[0], *verb.name.split(), *words],
        package=parent.package,
        verb=verb.name,
        schema=verb.schema,
        target=verb.target,
        config=composed.config,
        recipe=composed.recipe,
        parent=str(parent.config["output_dir"]),
    )
    return Child(name, invocation)


def given_words(section: str, given: Mapping[str, Any], owned: Sequence[str], *, by: str) -> list[str]:
    """Return the words for what the user set for a child in a section of its parent.

    Args:
        section: e.g. ``align``, for keys like ``align.trainer.learning_rate``.
        given: its content.
        owned: keys of the child, or sections of them, that the parent sets itself.
        by: the parent's verb.

    Raises:
        UserError: for one of these.
    """
    flat = flatten(dict(given))
    for key in flat:
        if key in owned or key.partition(".")[0] in owned:
            raise UserError(f"{section}.{key} is set by {by} itself; remove it")
    return [as_word(key, value) for key, value in flat.items()]


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Put the name of a child before what is refused in this block."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def check_launches(children: Iterable[Child]) -> None:
    """Refuse launches that this machine has not got, before the children before them have worked for hours.

    Raises:
        UserError: naming the child.
    """
    hardware = Hardware.detect()
    for child in children:
        if "launch" not in child.invocation.config:
            continue
        launch = LaunchConfig(**child.invocation.config["launch"])
        with naming(child.name):
            if launch.slurm:
                raise UserError("launch.slurm prints a script, and the next step needs what it would make; remove it")
            check(launch, hardware)


def run_child(run: Run, child: Child, environment: Mapping[str, str] | None = None) -> Path:
    """Run ``child`` in a process of its own, resume it if it was interrupted, skip it if it is finished.

    The parent's record names it, with its status and the SHA-256 of its record.

    Args:
        run: the parent's open record.
        child: what to run.
        environment: added to this process's.

    Returns:
        The child's folder.

    Raises:
        UserError: for a mistake that the child found, naming it.
        ReportedError: if the child failed. What is finished is kept either way.
    """
    folder = run.dir / child.name
    if is_finished(run, child):
        return folder
    print(f"{child.name}: {shlex.join(child.invocation.command)}", file=sys.stderr)
    note_child(run, child, "running")
    try:
        with naming(child.name), handed_over(run, child) as (command, error):
            code = wait_for(command, dict(environment or {}), error)
    finally:
        note_child(run, child)
    if code:
        raise ReportedError(f"{child.name} failed (its record: {folder}); the same command goes on from it")
    return folder


def is_finished(run: Run, child: Child) -> bool:
    """Say whether ``child`` was finished before; if not, whether it may be run is checked.

    Raises:
        UserError: if its folder holds something else, or a file of it was altered since.
    """
    folder = run.dir / child.name
    record = same_run(folder, child.invocation)
    if record is not None and record["status"] == "finished":
        with naming(child.name):
            _check_kept(folder)
        print(f"{child.name}: finished before, kept", file=sys.stderr)
        note_child(run, child)
        return True
    check_folder(folder, child.invocation)
    return False


def _check_kept(folder: Path) -> None:
    """Refuse a finished child that is not what was written; a folder that its parent has removed is no damage."""
    for finding in examine(folder, largest=SMALL) if is_sealed(folder) else ():
        if finding.problem and finding.path.parent.is_dir():
            raise UserError(f"{finding.problem}; put it back from a copy, or delete {folder} to have it made again")


@contextmanager
def handed_over(run: Run, child: Child) -> Iterator[tuple[list[str], Path]]:
    """Yield the command of the child's process, and the file it writes a user's mistake to; both are of this block."""
    path = run.dir / f".{child.name}.invocation.json"
    write_json(path, asdict(child.invocation))
    error = path.with_suffix(".error")
    try:
        yield [sys.executable, "-m", "reproalign.common.launch.child", str(path)], error
    finally:
        path.unlink(missing_ok=True)
        error.unlink(missing_ok=True)


def note_child(run: Run, child: Child, status: str | None = None) -> None:
    """Note a child in the parent's record, with ``status``, or with what its own record says: status, final metrics."""
    folder = run.dir / child.name
    record = read_record(folder) if status is None and (folder / RECORD).is_file() else {}
    entry = {"run": str(folder), "status": status or record.get("status", "not started")}
    if entry["status"] == "finished":
        entry |= {"record_sha256": sha256_file(folder / RECORD), "metrics": record["metrics"]}
    run.set("children", {**run.record["children"], child.name: entry})
