"""What is started, on which machine, with which files; made-up machines stand for the hardware."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from reproalign.common.config.launch import STRATEGIES, LaunchConfig
from reproalign.common.errors import UserError
from reproalign.common.invocation import Invocation
from reproalign.common.launch.plan import Hardware, LaunchPlan, check_in_force, deepspeed_config, plan, resolve
from reproalign.common.launch.slurm import slurm_script
from reproalign.common.launch.start import start

LAPTOP = Hardware(gpus=0, deepspeed=False)
SERVER = Hardware(gpus=0, deepspeed=True)
EIGHT = Hardware(gpus=8, deepspeed=True)
AWKWARD = """two words, it's "quoted", $HOME `date` \\n #"""


def launch(strategy: str, processes: int = 2, **more) -> LaunchConfig:
    return LaunchConfig(strategy=strategy, processes=processes, **more)


def option(command: list[str], name: str) -> str:
    return command[command.index(f"--{name}") + 1]


@pytest.mark.parametrize(
    ("config", "machine", "message"),
    [
        (launch("ddp", 3, machines=2), EIGHT, "launch.processes=3 (over all machines) is not divisible by launch.mach"),
        (launch("ddp", 4, machines=2, machine_rank=2), EIGHT, "launch.machine_rank=2 is not below launch.machines=2"),
        (launch("ddp", 4, machines=2), EIGHT, "several machines need launch.main_address"),
        (launch("single"), EIGHT, "launch.strategy=single runs one process, not 2; use launch=ddp"),
        (launch("zero1"), Hardware(gpus=8, deepspeed=False), "launch.strategy=zero1 needs DeepSpeed: pip install"),
        (launch("zero3-offload"), Hardware(gpus=8, deepspeed=False), "launch.strategy=zero3-offload needs DeepSpeed"),
        (launch("fsdp"), SERVER, "launch.strategy=fsdp needs GPUs (this machine has 0 GPUs; on a CPU it would"),
        (launch("zero3-offload"), SERVER, "needs GPUs to offload from (this machine has 0 GPUs); use launch=zero3"),
        (launch("ddp", 9), EIGHT, "launch.processes=9 is 9 per machine, but this machine has 8 GPUs"),
        (launch("auto", 4), EIGHT, "launch.strategy=auto is 8 processes here (8 GPUs per machine), not"),
        (launch("auto"), LAPTOP, "launch.strategy=auto is 1 process here (0 GPUs per machine), not"),
        (launch("auto", 1, machines=2), EIGHT, "several machines need launch.main_address"),
        (launch("fsdp", 18, machines=2, main_address="a"), EIGHT, "launch.processes=18 is 9 per machine, but this"),
    ],
)  # fmt: skip
def test_what_a_machine_cannot_run_is_refused(config, machine, message):
    with pytest.raises(UserError, match=re.escape(message)):
        plan(config, machine, "run.json")


def test_a_single_process_needs_no_command():
    for machine in (LAPTOP, Hardware(gpus=1, deepspeed=False)):
        assert plan(launch("single", 1), machine, "run.json") == LaunchPlan()


def test_a_single_process_sees_one_gpu_of_several(monkeypatch):
    """Or transformers.Trainer would spread it over all of them."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    machine = replace(Hardware.detect(), gpus=2)
    planned = plan(launch("single", 1), machine, "run.json")
    assert planned.command == [sys.executable, "-m", "reproalign.common.launch.worker", "run.json"]
    assert planned.environment == {"CUDA_VISIBLE_DEVICES": "3"}


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name not in ("auto", "single")])
def test_the_command_of_a_strategy(strategy):
    planned = plan(launch(strategy, 8, main_port=29501), EIGHT, "a run.json")
    command = planned.command
    assert command[:3] == [sys.executable, "-m", "reproalign.common.launch.launcher"]
    # DeepSpeed is set up by the trainer; its processes are started like data-parallel ones.
    assert Path(option(command, "config_file")).name == ("fsdp.yaml" if strategy == "fsdp" else "ddp.yaml")
    assert (option(command, "num_processes"), option(command, "num_machines")) == ("8", "1")
    assert (option(command, "machine_rank"), option(command, "main_process_port")) == ("0", "29501")
    assert "--main_process_ip" not in command
    assert command[-3:] == ["-m", "reproalign.common.launch.worker", "a run.json"]
    assert planned.environment == {}


@pytest.mark.parametrize(
    ("strategy", "environment"),
    [("ddp", {"ACCELERATE_USE_CPU": "true"}), *((f"zero{n}", {"DS_ACCELERATOR": "cpu"}) for n in (1, 2, 3))],
)
def test_without_gpus_the_processes_are_told_to_use_the_cpu(strategy, environment):
    assert plan(launch(strategy, 64), SERVER, "run.json").environment == environment


@pytest.mark.parametrize(
    ("gpus", "machines", "strategy", "processes"),
    [
        (0, 1, "single", 1),
        (1, 1, "single", 1),
        (2, 1, "fsdp", 2),
        (8, 1, "fsdp", 8),
        (1, 2, "fsdp", 2),
        (8, 2, "fsdp", 16),
    ],
)
def test_auto_is_fsdp_on_all_gpus_where_there_are_several(gpus, machines, strategy, processes):
    machine = Hardware(gpus=gpus, deepspeed=False)
    where = {"machines": machines, "main_address": "node-1"}
    resolved = resolve(launch("auto", 1, **where), machine)
    assert resolved == launch(strategy, processes, **where)
    assert resolve(resolved, machine) == resolved
    assert plan(launch("auto", 1, **where), machine, "run.json") == plan(resolved, machine, "run.json")


def test_every_machine_gets_its_rank_and_the_first_ones_address():
    commands = [
        plan(launch("zero3", 16, machines=2, machine_rank=rank, main_address="node-1"), EIGHT, "run.json").command
        for rank in (0, 1)
    ]
    for rank, command in enumerate(commands):
        assert (option(command, "num_processes"), option(command, "num_machines")) == ("16", "2")
        assert (option(command, "machine_rank"), option(command, "main_process_ip")) == (str(rank), "node-1")
    assert [word for word in commands[0] if word not in commands[1]] == ["0"]


def test_a_strategy_that_fell_back_to_another_is_noticed():
    for strategy, kind in [("single", "NO"), ("ddp", "MULTI_CPU"), ("fsdp", "FSDP"), ("zero2", "DEEPSPEED")]:
        check_in_force(strategy, kind)
        for other in {"NO", "MULTI_GPU", "FSDP", "DEEPSPEED"} - {kind, "MULTI_GPU" if strategy == "ddp" else ""}:
            with pytest.raises(UserError, match=f"launch.strategy={strategy} was asked for, but {other} is in force"):
                check_in_force(strategy, other)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_the_packaged_accelerate_files(strategy):
    file = Path(option(plan(launch(strategy), EIGHT, "run.json").command, "config_file"))
    settings = yaml.safe_load(file.read_text())
    assert settings["distributed_type"] == {"ddp": "MULTI_GPU", "fsdp": "FSDP"}[strategy]
    assert (settings["compute_environment"], settings["rdzv_backend"]) == ("LOCAL_MACHINE", "static")
    assert settings["use_cpu"] is False
    assert "mixed_precision" not in settings  # trainer.bf16 decides
    if strategy == "fsdp":
        assert settings["fsdp_config"]["fsdp_version"] == 2
        assert settings["fsdp_config"]["fsdp_reshard_after_forward"] is True
        assert settings["fsdp_config"]["fsdp_offload_params"] is False


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "auto"])
def test_the_packaged_deepspeed_files(strategy):
    settings = deepspeed_config(strategy, "float32", None)
    if not strategy.startswith("zero"):
        assert settings is None
        return
    zero = settings.pop("zero_optimization")
    assert zero["stage"] == int(strategy[4])
    offloaded = {key: value["device"] for key, value in zero.items() if key.startswith("offload")}
    both = {"offload_optimizer": "cpu", "offload_param": "cpu"}
    assert offloaded == (both if strategy == "zero3-offload" else {})
    # At stage 3 no process holds the whole model, so that saving it has to gather the shards.
    assert zero.get("stage3_gather_16bit_weights_on_model_save", False) == (zero["stage"] == 3)
    for key in ("gradient_accumulation_steps", "gradient_clipping", "train_batch_size"):
        assert settings[key] == "auto"  # the trainer's own
    assert settings["bf16"] == settings["fp16"] == {"enabled": "auto"}
    assert "communication_data_type" not in settings  # float32, as everything


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_deepspeed_reduces_and_accumulates_in_the_dtype_of_the_weights(strategy):
    masters = deepspeed_config(strategy, "float32", "bfloat16")
    assert (masters["communication_data_type"], masters["data_types"]) == ("fp32", {"grad_accum_dtype": "fp32"})
    assert masters["bf16"] == {"enabled": "auto"}  # trainer.bf16
    pure = deepspeed_config(strategy, "bfloat16", None)
    assert (pure["communication_data_type"], pure["data_types"]) == ("bf16", {"grad_accum_dtype": "bf16"})
    assert pure["bf16"] == {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}


def run_script(folder: Path, script: str, node: int) -> list[str]:
    """Run a batch script with stand-ins for SLURM's commands; return the words that ``python`` gets on ``node``."""
    bin_folder = folder / "bin"
    bin_folder.mkdir(exist_ok=True)
    stand_ins = {
        "scontrol": "printf 'node-%s\\n' 7 8",
        "srun": 'shift; exec "$@"',
        "python": f"exec {shlex.quote(sys.executable)} -c 'import json, sys; print(json.dumps(sys.argv[1:]))' \"$@\"",
    }
    for name, body in stand_ins.items():
        (bin_folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (bin_folder / name).chmod(0o755)
    environment = {
        "PATH": f"{bin_folder}:/usr/bin:/bin",
        "SLURM_JOB_NODELIST": "node-[7-8]",
        "SLURM_NODEID": str(node),
        "HOME": "/nobody",
    }
    (folder / "job.sh").write_text(script)
    done = subprocess.run(["bash", "job.sh"], capture_output=True, text=True, cwd=folder, env=environment, check=True)
    return json.loads(done.stdout)


def test_a_slurm_script_starts_the_planned_command_on_every_node(tmp_path):
    config = launch("fsdp", 16, machines=2, main_port=29501, slurm_options={"time": "24:00:00", "output": "%j.log"})
    script = slurm_script(config, "gamma", "runs/gamma.invocation.json", '{"a": 1}')
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    header = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", script, re.MULTILINE))
    assert header == {
        "job-name": "gamma",
        "nodes": "2",
        "ntasks-per-node": "1",  # one launcher per node, which starts the node's processes
        "gpus-per-node": "8",
        "time": "24:00:00",
        "output": "%j.log",
        "open-mode": "append",
        "signal": "USR1@120",
    }
    assert "#SBATCH --requeue\n" in script
    for node in (0, 1):
        by_hand = launch("fsdp", 16, machines=2, main_port=29501, machine_rank=node, main_address="node-7")
        expected = plan(by_hand, EIGHT, "runs/gamma.invocation.json").command[1:]
        assert run_script(tmp_path, script, node) == expected
    assert (tmp_path / "runs/gamma.invocation.json").read_text() == '{"a": 1}\n'


def test_awkward_words_reach_the_nodes_unchanged(tmp_path):
    record, content = f"runs {AWKWARD}/x.invocation.json", json.dumps({"output_dir": AWKWARD})
    config = launch("ddp", 2, machines=1, slurm_options={"comment": AWKWARD})
    script = slurm_script(config, AWKWARD, record, content)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    for name in ("job-name", "comment"):
        (line,) = [line for line in script.splitlines() if line.startswith(f"#SBATCH --{name}=")]
        assert shlex.split(line.removeprefix("#SBATCH ")) == [f"--{name}={AWKWARD}"]
    assert run_script(tmp_path, script, 0)[-1] == record
    assert (tmp_path / record).read_text() == f"{content}\n"


@pytest.mark.parametrize(("options", "queued"), [({}, ["requeue 17"]), ({"no-requeue": ""}, [])])
def test_a_job_that_was_interrupted_goes_into_the_queue_again(tmp_path, options, queued):
    script = slurm_script(launch("ddp", 2, machines=1, slurm_options=options), "job", "a/x.invocation.json", "{}")
    tools = tmp_path / "bin"
    tools.mkdir()
    commands = {
        "scontrol": f'[ "$1" = show ] && echo node-7 || echo "$@" >> {tmp_path}/queued',
        "srun": 'touch "$REPROALIGN_INTERRUPTED_FILE"; exit 138',
    }
    for name, text in commands.items():
        (tools / name).write_text(f"#!/bin/bash\n{text}\n")
        (tools / name).chmod(0o755)
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "node-7", "SLURM_JOB_ID": "17"}
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 138
    assert ((tmp_path / "queued").read_text().splitlines() if queued else []) == queued
    assert (tmp_path / "queued").exists() == bool(queued)


def invocation(folder: Path, config: LaunchConfig) -> Invocation:
    return Invocation(
        command=["toy", "train"],
        package="toy",
        verb="train",
        schema="module:Schema",
        target="module:function",
        config={"output_dir": str(folder / "run"), "launch": asdict(config)},
    )


def test_what_auto_came_to_is_printed_and_handed_on(tmp_path, capsys, monkeypatch):
    started = []
    module = sys.modules["reproalign.common.launch.start"]  # the package has a function of that name
    monkeypatch.setattr(module, "carry_out", started.append)
    monkeypatch.setattr(Hardware, "detect", lambda: LAPTOP)
    assert start(invocation(tmp_path, launch("auto", 1)), dry_run=False) == 0
    assert [taken.config["launch"] for taken in started] == [asdict(launch("single", 1))]
    assert "launch=auto: single, 1 process, 0 GPUs per machine" in capsys.readouterr().err
    monkeypatch.setattr(Hardware, "detect", lambda: EIGHT)

    def wait(command: list[str], environment: dict[str, str], error: Path) -> int:
        assert option(command, "num_processes") == "8"
        started.append(Invocation(**json.loads(Path(command[-1]).read_text())))
        return 0

    monkeypatch.setattr(module, "wait_for", wait)
    assert start(invocation(tmp_path, launch("auto", 1)), dry_run=False) == 0
    assert started[-1].config["launch"] == asdict(launch("fsdp", 8))
    printed = capsys.readouterr().err
    assert "launch=auto: fsdp, 8 processes, 8 GPUs per machine" in printed
    assert "--num_processes 8" in printed


def test_a_slurm_launch_prints_the_script_and_writes_nothing(tmp_path, capsys):
    asked = invocation(tmp_path, launch("zero3", 16, machines=2, slurm=True))  # more than this machine has
    assert start(asked, dry_run=False) == 0
    script = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    (content,) = re.findall(r"<<'CONFIG'\n(.*)\nCONFIG\n", script)
    carried = json.loads(content)
    assert carried["config"]["launch"].pop("slurm") is False  # the job runs; it does not print another script
    assert carried["config"]["launch"].items() <= asked.config["launch"].items()
    assert {**carried, "config": None} == {**asdict(asked), "config": None}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (launch("single", 1, slurm=True), "a SLURM job needs a strategy for several processes"),
        (launch("auto", 1, slurm=True), "launch.strategy=auto looks at this machine, not at SLURM's nodes"),
        (launch("ddp", 3, machines=2, slurm=True), "not divisible by launch.machines=2"),
    ],
)
def test_a_slurm_launch_is_checked_before_it_waits_in_a_queue(tmp_path, capsys, config, message):
    with pytest.raises(UserError, match=message):
        start(invocation(tmp_path, config), dry_run=False)
    assert capsys.readouterr().out == ""
