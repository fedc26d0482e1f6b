"""The verb ``align raft``: rejection sampling fine-tuning, each iteration as four runs below this one.

RAFT (R7; Dong et al., 2023, arXiv 2304.06767), the paper's RSF: an iteration samples n responses to each of a batch of
prompts from the current policy, scores them, keeps the best for each prompt, and fine-tunes the policy on these.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from reproalign.ama.align.prompt_batches import iteration_prompts
from reproalign.ama.align.prompt_length import short_prompts
from reproalign.ama.align.raft_config import RaftConfig
from reproalign.ama.align.raft_files import POOL, RECORD_FILE, SAMPLES, TRAJECTORY, pool_rows, trajectory_text
from reproalign.ama.align.raft_options import ITERATIONS, RaftRules, child_words, resolve
from reproalign.ama.align.reward_record import record_line, reward_record
from reproalign.ama.align.sft_options import check_options
from reproalign.common.console import say
from reproalign.common.data.records import Message
from reproalign.common.errors import counted
from reproalign.common.files import sha256_json, write_text
from reproalign.common.generation.prompt_files import read_prompts
from reproalign.common.generation.samples import SCORED, SELECTED, find, read_sampled, write_rows
from reproalign.common.invocation import Invocation
from reproalign.common.launch.children import Child, check_launches, run_child
from reproalign.common.records import Run
from reproalign.common.records.fingerprints import identity_of
from reproalign.common.records.folder import read_record
from reproalign.common.verbs.iterations import check_iteration, plan_iterations, report_rewards, write_prompts

PROMPTS = "prompts.jsonl"  # of the folder of `ama data`


@dataclass(frozen=True)
class RaftPlan:
    """What is run.

    Attributes:
        rules: what the options come to.
        prompts: all that are short enough.
        overlong: how many are not.
        batches: of every iteration, the indices of its prompts by process.
        children: of every iteration, by step.
    """

    rules: RaftRules
    prompts: list[list[Message]]
    overlong: int
    batches: list[list[list[int]]]
    children: list[dict[str, Child]]


def raft(config: RaftConfig, invocation: Invocation) -> None:
    """Run the iterations (R7), and gather what they selected.

    ``pool.jsonl`` holds the selected rows of all iterations, ``reward_record.txt`` a line of the release's record for
    each, ``trajectory.csv`` its model and rewards, ``prompts-<k>.jsonl`` its prompts.

    Raises:
        UserError: for a mistake in the options, those of the children included, before anything is run.
        ReportedError: if a child failed; the same command goes on from it.
    """
    plan = make_plan(config, invocation)
    check_launches(plan.children[0].values())
    with Run.open(invocation) as run:
        run.add_fingerprint(
            "data",
            "prompts",
            sha256_json(plan.prompts),
            path=config.prompts,
            rows=len(plan.prompts),
            overlong=plan.overlong,
        )
        found = []
        for number, (batches, children) in enumerate(zip(plan.batches, plan.children, strict=True), start=1):
            write_prompts(run.dir, number, [plan.prompts[index] for part in batches for index in part])
            folders = {name: run_child(run, child) for name, child in children.items()}
            found.append(_measure(number, folders, batches, plan.rules))
            run.set_metrics({f"iteration_{number}": found[-1]})
            write_text(run.dir / RECORD_FILE, "".join(record_line(entry["record"]) for entry in found))
            write_text(run.dir / TRAJECTORY, trajectory_text(found))
        write_rows(run.dir / POOL, pool_rows(run.dir, len(found), "select", SELECTED))
        if config.keep_samples:
            write_rows(run.dir / SAMPLES, pool_rows(run.dir, len(found), "score", SCORED))
        model = folders["train"] / "model"
        weights = identity_of(read_record(folders["train"])["fingerprints"]["weights"]["model"])
        run.add_fingerprint("weights", "model", weights, made=True, path=str(model))
        rewards = {"all responses": "mean_reward_of_all", "the candidates": "mean_reward_counted"}
        rewards |= {"the selected": "mean_reward"}
        report_rewards({name: [entry[key] for entry in found] for name, key in rewards.items()}, run.dir)
        say(f"model: {model}; pool, record and plot: {run.dir}")


def show_plan(config: RaftConfig, invocation: Invocation) -> None:
    """Print the command lines of the child runs."""
    plan = make_plan(config, invocation)
    sizes = [sum(map(len, batches)) for batches in plan.batches]
    print(
        f"{len(plan.prompts)} prompts of at most {config.max_prompt_length} tokens ({plan.overlong} longer); "
        f"{counted(config.iterations, 'iteration')} of {', '.join(map(str, sorted(set(sizes))))} prompts:"
    )
    for children in plan.children:
        for child in children.values():
            print(shlex.join(child.invocation.command))


def make_plan(config: RaftConfig, invocation: Invocation) -> RaftPlan:
    """Check everything, deal out the prompts, and compose the children.

    Raises:
        UserError: naming the key, or the child, that is wrong.
    """
    rules = resolve(config)
    children = list(
        plan_iterations(ITERATIONS, invocation, config, words=child_words(config, rules), seed_step=rules.seed_step)
    )
    prompts = read_prompts(str(find(config.prompts, PROMPTS, "prompts")))
    check_iteration(children[0], "train", check_options)
    kept = short_prompts(
        prompts, config.model, config.layout, config.max_prompt_length, key=f"prompts={config.prompts}"
    )
    short = [prompts[index] for index in kept]
    batches = [
        iteration_prompts(
            len(short),
            config.prompts_per_iteration,
            number,
            config.prompt_seed,
            ranks=rules.ranks,
        )
        for number in range(config.iterations)
    ]
    return RaftPlan(rules, short, len(prompts) - len(short), batches, children)


def _measure(number: int, folders: dict[str, Path], batches: list[list[int]], rules: RaftRules) -> dict[str, Any]:
    """Return what an iteration is reported by: rewards, the release's record, and the model."""
    rows = read_sampled(folders["score"] / SCORED, scored=True)
    ends = list(accumulate(map(len, batches)))
    ranks = [rows[end - len(part) : end] for end, part in zip(ends, batches, strict=True)]
    selected = read_record(folders["select"])["metrics"]
    trained = read_record(folders["train"])
    return {
        "iteration": number,
        **selected,
        "record": reward_record(ranks, rules.selection, rules.record),
        "train_loss": trained["metrics"].get("train_loss"),
        "model": str(folders["train"] / "model"),
    }
