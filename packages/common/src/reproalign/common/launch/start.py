"""Carry out an invocation: here, or in the processes it asks for."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO

from reproalign.common.config.launch import LaunchConfig
from reproalign.common.errors import INTERRUPTED, Interruption, PreviewedError, ReportedError, UserError, counted
from reproalign.common.invocation import Invocation, carry_out, structured
from reproalign.common.launch.plan import AUTO, Hardware, check, plan, resolve
from reproalign.common.launch.slurm import slurm_script
from reproalign.common.launch.worker import ERROR_FILE
from reproalign.common.options.load import load_object
from reproalign.common.records.folder import check_folder, note_death
from reproalign.common.records.hub import check_push, push

AT_ONCE = "at_once"  # a run with this key starts others, whose launch its section is


def start(invocation: Invocation, *, dry_run: bool, check_options: str = "", previewed: bool = False) -> int:
    """Run ``invocation`` as its ``launch`` section says, without one in this process, and return the exit code.

    The configuration is composed once, by the caller; workers read it from a file. Everything that can be refused
    without a model is refused here, before any process is started or file written.

    Args:
        invocation: what is run.
        dry_run: stop after the checks.
        check_options: ``module:function(config)`` of the verb's own checks, which see the launch that was chosen.
        previewed: the verb can say how it would train (:class:`~reproalign.common.invocation.Verb`).
    """
    hub = invocation.config.get("hub") or {}
    if hub.get("private") and not hub["push"]:
        raise UserError("hub.private=true says how hub.push makes a repository; set hub.push=ORG/NAME, or remove it")
    if hub.get("push"):
        _check_hub(invocation, hub["push"])
    code = _start(invocation, dry_run=dry_run, check_options=check_options, previewed=previewed)
    if hub.get("push") and not code and not dry_run and not invocation.config["launch"]["machine_rank"]:
        print(f"pushed: {push(Path(invocation.config['output_dir']), hub['push'], private=hub['private'])}")
    return code


def _check_hub(invocation: Invocation, repo: str) -> None:
    """Refuse a push that cannot be made at the end.

    Raises:
        UserError: if this run makes several models or none here, or for what the Hub would refuse.
    """
    if AT_ONCE in invocation.config or invocation.config["launch"]["slurm"]:
        why = "prints a script" if invocation.config["launch"]["slurm"] else "makes several models"
        raise UserError(f"hub.push={repo}: this command {why}; push afterwards with `reproalign push RUN {repo}`")
    check_push(repo)
    lora = invocation.config["model"]["lora"]
    if lora["enabled"] and not lora["merge"]:
        name = invocation.config["model"]["name"]
        if ":" in name or Path(name).expanduser().is_dir():
            raise UserError(
                f"hub.push={repo}: an adapter of {name}, which is not on the Hub, is of no use there; set "
                f"model.lora.merge=true, or push afterwards with `reproalign push RUN {repo} --base ORG/BASE`"
            )


def _start(invocation: Invocation, *, dry_run: bool, check_options: str, previewed: bool) -> int:
    if "launch" not in invocation.config or AT_ONCE in invocation.config:
        carry_out(invocation)
        return 0
    config = LaunchConfig(**invocation.config["launch"])
    if config.slurm:
        if config.strategy == AUTO:
            raise UserError("launch.strategy=auto looks at this machine, not at SLURM's nodes; choose one, e.g. fsdp")
        remote = Hardware(gpus=config.processes // max(config.machines, 1), deepspeed=True)
        check(LaunchConfig(**{**asdict(config), "main_address": config.main_address or "known to SLURM"}), remote)
        _check_options(invocation, check_options)
        folder = Path(invocation.config["output_dir"])
        local = {**asdict(invocation), "config": {**invocation.config, "launch": {**asdict(config), "slurm": False}}}
        print(slurm_script(config, folder.name, f"{folder}.invocation.json", json.dumps(local)), end="")
        return 0
    hardware = Hardware.detect()
    if config.strategy == AUTO:
        config = resolve(config, hardware)
        invocation = replace(invocation, config={**invocation.config, "launch": asdict(config)})
        taken = f"{counted(config.processes, 'process')}, {counted(hardware.gpus, 'GPU')} per machine"
        print(f"launch=auto: {config.strategy}, {taken}", file=sys.stderr)
    _check_options(invocation, check_options)
    check_folder(Path(invocation.config["output_dir"]), invocation)
    with tempfile.TemporaryDirectory(prefix="reproalign-") as temporary:
        record = Path(temporary) / "invocation.json"
        planned = plan(config, hardware, str(record))
        if planned.command:
            print(f"running: {shlex.join(planned.command)}", file=sys.stderr)
        if dry_run:
            print(f"{shlex.join(invocation.command)}: would write to {invocation.config['output_dir']}", flush=True)
            if previewed:
                _preview(invocation, config, temporary)
            return 0
        if not planned.command:
            carry_out(invocation)
            return 0
        record.write_text(json.dumps(asdict(invocation)), encoding="utf-8")
        code = wait_for(planned.command, planned.environment, Path(temporary) / "error")
        if code:
            note_death(Path(invocation.config["output_dir"]), "a process of this run was killed or failed")
        return code


def _preview(invocation: Invocation, config: LaunchConfig, cache: str) -> None:
    """Prepare the rows of a run in this process, in a cache that is thrown away, until it has said how it would train.

    Args:
        invocation: of the run.
        config: its launch.
        cache: folder of the rows.
    """
    here = {**asdict(config), "strategy": "single", "processes": 1, "machines": 1, "machine_rank": 0}
    changed = {**invocation.config, "launch": here}
    for name, section in invocation.config.items():
        if isinstance(section, dict) and "cache_dir" in section:
            changed[name] = {**section, "cache_dir": cache}
    with suppress(PreviewedError):
        carry_out(replace(invocation, config=changed, preview=asdict(config)))


def _check_options(invocation: Invocation, function: str) -> None:
    if function:
        load_object(function)(structured(invocation.schema, invocation.config))


def wait_for(command: list[str], environment: dict[str, str], error: Path) -> int:
    """Run ``command`` and return 0 or 1; a user's mistake that it found, or a signal that ended it, becomes ours.

    A signal that comes meanwhile is handed on; a second one ends the command at once.

    Args:
        command: a launcher or a child, whose processes write such a mistake to a file (see
            :func:`reproalign.common.launch.worker.hand_on`).
        environment: added to this process's.
        error: that file.

    Raises:
        UserError: the mistake.
        Interruption: the signal.
        ReportedError: if the command was killed.
    """
    process = open_process(command, environment, error)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        end(process)
        raise
    if code > INTERRUPTED:
        raise Interruption(code - INTERRUPTED)
    if code < 0:
        name = signal.Signals(-code).name
        raise ReportedError(f"process {process.pid} was killed by {name}; the same command goes on from what it left")
    if code and error.is_file():
        raise UserError(error.read_text(encoding="utf-8"))
    return 1 if code else 0


def end(*processes: subprocess.Popen[bytes]) -> None:
    """Let processes of :func:`open_process` end at their next safe point, and wait; once interrupted, end them."""
    try:
        for process in processes:
            process.send_signal(signal.SIGUSR1)
        for process in processes:
            process.wait()
    except KeyboardInterrupt:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def open_process(
    command: list[str], environment: dict[str, str], error: Path, output: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """Start ``command``, as :func:`wait_for` does; what it prints goes to ``output``, or where ours goes.

    It has a session of its own: Ctrl-C reaches it through this process, once.
    """
    everything = {**os.environ, **environment, ERROR_FILE: str(error)}
    return subprocess.Popen(command, env=everything, stdout=output, stderr=output, start_new_session=True)
