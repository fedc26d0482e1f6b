"""The verb ``raft``: rejection sampling from prompts to an aligned model in one command, in one or more iterations."""

from __future__ import annotations

import shlex

from reproalign.common.console import say
from reproalign.common.errors import counted
from reproalign.common.files import sha256_json
from reproalign.common.generation.prompt_files import read_prompts
from reproalign.common.invocation import Invocation
from reproalign.common.launch.children import Child, check_launches, run_child
from reproalign.common.records import Run
from reproalign.common.records.fingerprints import identity_of
from reproalign.common.records.folder import read_record
from reproalign.common.verbs import REJECTION_SAMPLING
from reproalign.common.verbs.align import check_align
from reproalign.common.verbs.config import RaftConfig
from reproalign.common.verbs.iterations import (
    Iterations,
    IterationStep,
    check_iteration,
    plan_iterations,
    report_rewards,
    write_prompts,
)

ALIGN = next(verb for verb in REJECTION_SAMPLING if verb.name == "align")
ITERATIONS = Iterations(
    by="raft",
    train=IterationStep("align", ALIGN, ("selected", "model", "seed", "output_dir")),
    selected="selected",
)


def raft(config: RaftConfig, invocation: Invocation) -> None:
    """Run sample, score, select and align as child runs, the next iteration from the model of the one before.

    RAFT (Dong et al., 2023, arXiv 2304.06767): each iteration draws n responses to each of its prompts, keeps the one
    that the reward model likes best, and fine-tunes on these. Iteration i samples with ``seed + i - 1``.

    Raises:
        UserError: for a mistake in the options, those of the children included, before anything is run.
        ReportedError: if a child failed.
    """
    plan = _plan(config, invocation)
    prompts = read_prompts(config.prompts)
    check_iteration(plan[0], "align", check_align)
    check_launches(plan[0].values())
    with Run.open(invocation) as run:
        run.add_fingerprint("data", "prompts", sha256_json(prompts), path=config.prompts, rows=len(prompts))
        rewards: dict[str, list[float]] = {"all responses": [], "the selected": []}
        for number, children in enumerate(plan, start=1):
            part = _part(len(prompts), config.prompts_per_iteration, number)
            write_prompts(run.dir, number, [prompts[index] for index in part])
            folders = {name: run_child(run, child) for name, child in children.items()}
            found = read_record(folders["select"])["metrics"]
            rewards["all responses"].append(found["mean_reward_of_all"])
            rewards["the selected"].append(found["mean_reward"])
            aligned = read_record(folders["align"])
            run.set_metrics({f"iteration_{number}": {**found, "eval_loss": aligned["metrics"].get("eval_loss")}})
        weights = identity_of(aligned["fingerprints"]["weights"]["model"])
        run.add_fingerprint("weights", "model", weights, made=True, path=str(folders["align"] / "model"))
        report_rewards(rewards, run.dir)
        say(f"model: {folders['align'] / 'model'}; record and plot: {run.dir}")


def show_plan(config: RaftConfig, invocation: Invocation) -> None:
    """Print the command lines of the child runs."""
    plan = _plan(config, invocation)
    prompts = read_prompts(config.prompts)
    check_iteration(plan[0], "align", check_align)
    print(f"{len(prompts)} prompts; {counted(config.iterations, 'iteration')}:")
    for children in plan:
        for child in children.values():
            print(shlex.join(child.invocation.command))


def _plan(config: RaftConfig, invocation: Invocation) -> list[dict[str, Child]]:
    return list(plan_iterations(ITERATIONS, invocation, config))


def _part(count: int, size: int | None, number: int) -> list[int]:
    """Return the indices of an iteration's prompts: the next ``size`` of them, from the front again after the last."""
    size = min(size or count, count)
    return [index % count for index in range((number - 1) * size, number * size)]
