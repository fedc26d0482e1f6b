"""How the processes of a run are started: ``launch.*``."""

from __future__ import annotations

from dataclasses import dataclass

from reproalign.common.options import option

STRATEGIES = {
    "auto": "fsdp on several GPUs, otherwise single",
    "single": "one process",
    "ddp": "each process holds all weights",
    "fsdp": "weights, gradients and states sharded",
    "zero1": "DeepSpeed: states sharded",
    "zero2": "and gradients",
    "zero3": "and weights",
    "zero3-offload": "and states in the CPU's memory",
}


@dataclass
class LaunchConfig:
    """How processes are started."""

    strategy: str = option("single", help="how processes share the work", choices=STRATEGIES)
    processes: int = option(1, help="processes in all, over all machines", at_least=1)
    machines: int = option(1, help="machines that take part", at_least=1)
    machine_rank: int = option(0, help="which of the machines this is, from 0 on", at_least=0)
    main_address: str | None = option(None, help="address of machine 0, where there are several", null="this machine")
    main_port: int = option(29500, help="port of machine 0; 0: a free one", at_least=0, at_most=65535)
    slurm: bool = option(False, help="print a SLURM script instead of running")
    slurm_options: dict[str, str] = option({}, help='e.g. {time: "24:00:00", partition: gpu}')
