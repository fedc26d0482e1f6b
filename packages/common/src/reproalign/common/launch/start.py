"""Carry out an invocation: here, or in the processes it asks for."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO

from reproalign.common.config import LaunchConfig
from reproalign.common.errors import UserError
from reproalign.common.invocation import Invocation, carry_out, load_object, structured
from reproalign.common.launch.plan import AUTO, Hardware, check, plan, resolve
from reproalign.common.launch.slurm import slurm_script
from reproalign.common.records.run import check_folder

AT_ONCE = "at_once"  # a run with this key starts others, whose launch its section is


def start(invocation: Invocation, *, dry_run: bool, check_options: str = "") -> int:
    """Run ``invocation`` as its ``launch`` section says, without one in this process, and return the exit code.

    The configuration is composed once, by the caller; workers read it from a file. Everything that can be refused
    without a model is refused here, before any process is started or file written.

    Args:
        invocation: what is run.
        dry_run: stop after the checks.
        check_options: ``module:function(config)`` of the verb's own checks, which see the launch that was chosen.
    """
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
        print(
            f"launch=auto: {config.strategy}, {config.processes} process(es), {hardware.gpus} GPU(s) per machine",
            file=sys.stderr,
        )
    _check_options(invocation, check_options)
    check_folder(Path(invocation.config["output_dir"]), invocation)
    with tempfile.TemporaryDirectory(prefix="reproalign-") as temporary:
        record = Path(temporary) / "invocation.json"
        planned = plan(config, hardware, str(record))
        if planned.command:
            print(f"running: {shlex.join(planned.command)}", file=sys.stderr)
        if dry_run:
            print(f"{shlex.join(invocation.command)}: would write to {invocation.config['output_dir']}")
            return 0
        if not planned.command:
            carry_out(invocation)
            return 0
        record.write_text(json.dumps(asdict(invocation)), encoding="utf-8")
        return wait_for(planned.command, planned.environment, Path(temporary) / "error")


def _check_options(invocation: Invocation, function: str) -> None:
    if function:
        load_object(function)(structured(invocation.schema, invocation.config))


def wait_for(command: list[str], environment: dict[str, str], error: Path) -> int:
    """Run ``command``, forwarding Ctrl-C, and return 0 or 1; a user's mistake that it found becomes ours.

    Args:
        command: whose workers write such a mistake to a file (see :func:`reproalign.common.launch.worker.hand_on`).
        environment: added to this process's.
        error: that file.

    Raises:
        UserError: the mistake.
    """
    process = open_process(command, environment, error)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        process.wait()
        raise
    if code and error.is_file():
        raise UserError(error.read_text(encoding="utf-8"))
    return 1 if code else 0


def open_process(
    command: list[str], environment: dict[str, str], error: Path, output: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """Start ``command``, as :func:`wait_for` does; what it prints goes to ``output``, or where ours goes."""
    everything = {**os.environ, **environment, "REPROALIGN_ERROR_FILE": str(error)}
    return subprocess.Popen(command, env=everything, stdout=output, stderr=output)
