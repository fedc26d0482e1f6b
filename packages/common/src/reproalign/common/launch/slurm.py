"""The script of a multi-node SLURM job."""

from __future__ import annotations

import shlex
from dataclasses import replace

from reproalign.common.config.launch import LaunchConfig
from reproalign.common.errors import UserError
from reproalign.common.launch.plan import launcher
from reproalign.common.launch.signals import GRACE
from reproalign.common.launch.worker import INTERRUPTED_FILE


def slurm_script(config: LaunchConfig, job: str, record: str, config_json: str) -> str:
    """Return a batch script that starts ``config.processes`` processes on ``config.machines`` nodes.

    The resolved configuration travels inside the script, so that the job runs what was asked for even if files change
    while it waits. Two minutes before its time is over SLURM sends SIGUSR1: the run writes a checkpoint and ends, and
    the script puts the job into the queue again, which then goes on from there.

    Args:
        config: the launch; ``slurm_options`` become ``#SBATCH --key=value`` lines, ``#SBATCH --key`` where the value is
            empty. ``no-requeue`` among them leaves the job ended.
        job: the job's name.
        record: where on the nodes the script puts the configuration for the workers; a shared folder.
        config_json: the invocation as JSON.

    Raises:
        UserError: if a single process was asked for.
    """
    if config.strategy == "single":
        raise UserError("a SLURM job needs a strategy for several processes; set launch.strategy=ddp, fsdp or zero3")
    local = config.processes // config.machines
    options = {
        "job-name": job,
        "nodes": str(config.machines),
        "ntasks-per-node": "1",
        "gpus-per-node": str(local),
        "output": "%x-%j.log",
        "open-mode": "append",
        "signal": f"USR1@{GRACE:.0f}",
        **({} if "no-requeue" in config.slurm_options else {"requeue": ""}),
        **config.slurm_options,
    }
    header = "\n".join(f"#SBATCH --{key}{value and f'={shlex.quote(value)}'}" for key, value in options.items())
    words = launcher(replace(config, main_address="@ADDRESS@", machine_rank=0))
    words = ["python", *words[1:]]  # the node's own interpreter, from the activated environment
    command = "exec " + shlex.join([*words, "-m", "reproalign.common.launch.worker", record])
    command = command.replace("@ADDRESS@", '"$MAIN_ADDRESS"').replace(
        "--machine_rank 0", '--machine_rank "$SLURM_NODEID"'
    )
    requeue = f'[ -e "${INTERRUPTED_FILE}" ] && scontrol requeue "$SLURM_JOB_ID"\n' if "requeue" in options else ""
    return f"""#!/bin/bash
{header}
set -euo pipefail
# Activate the environment in which reproalign is installed here, on every node the same.

MAIN_ADDRESS=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MAIN_ADDRESS=${{MAIN_ADDRESS%%$'\\n'*}} # the first; "| head -n 1" could break the pipe, and with it the job
mkdir -p {shlex.quote(record.rpartition("/")[0] or ".")}
cat > {shlex.quote(record)} <<'CONFIG'
{config_json}
CONFIG
export {INTERRUPTED_FILE}={shlex.quote(f"{record}.interrupted")}
rm -f "${INTERRUPTED_FILE}"
code=0
srun --kill-on-bad-exit=1 bash -c {shlex.quote(command)} || code=$?
{requeue}exit "$code"
"""
