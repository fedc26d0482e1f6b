"""The verb ``raft``: rejection sampling from prompts to an aligned model in one command, in one or more iterations."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from reproalign.common.compose import as_word, section_words
from reproalign.common.errors import UserError
from reproalign.common.evaluation.plots import Curve, comparison
from reproalign.common.files import sha256_json, write_text
from reproalign.common.generation.sampling import read_prompts
from reproalign.common.invocation import Invocation, structured
from reproalign.common.launch.children import Child, given_words, plan_child, run_child
from reproalign.common.models.kind import check_language_model, check_reward_model
from reproalign.common.records import Run
from reproalign.common.records.run import read_record
from reproalign.common.verbs import REJECTION_SAMPLING
from reproalign.common.verbs.align import check_align
from reproalign.common.verbs.config import RaftConfig
from reproalign.common.verbs.sample import sampling_rules
from reproalign.common.verbs.score import check_score

VERBS = {verb.name: verb for verb in REJECTION_SAMPLING}
# Keys of the children that raft sets itself.
OWNED = {
    "sample": ("prompts", "model", "seed", "output_dir"),
    "score": ("responses", "model.name", "seed", "output_dir"),
    "select": ("scored", "seed", "output_dir", "keep"),
    "align": ("selected", "model", "seed", "output_dir"),
}


def raft(config: RaftConfig, invocation: Invocation) -> None:
    """Run sample, score, select and align as child runs, the next iteration from the model of the one before.

    RAFT (Dong et al., 2023, arXiv 2304.06767): each iteration draws n responses to each of its prompts, keeps the one
    that the reward model likes best, and fine-tunes on these. Iteration i samples with ``seed + i - 1``.

    Raises:
        UserError: for a mistake in the options, those of the children included, before anything is run.
        ReportedError: if a child failed.
    """
    plan = list(_plan(config, invocation))
    prompts = read_prompts(config.prompts)
    _check_children(plan[0])
    with Run.open(invocation) as run:
        run.add_fingerprint("data", "prompts", sha256_json(prompts), path=config.prompts, rows=len(prompts))
        rewards: list[tuple[float, float]] = []
        for number, children in enumerate(plan, start=1):
            part = _part(len(prompts), config.prompts_per_iteration, number)
            rows = [{"prompt": prompts[index]} for index in part]
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_text(_prompts_file(run.dir, number), text)
            folders = {child.invocation.verb: run_child(run, child) for child in children}
            found = read_record(folders["select"])["metrics"]
            rewards.append((found["mean_reward_of_all"], found["mean_reward"]))
            aligned = read_record(folders["align"])
            run.set_metrics({f"iteration_{number}": {**found, "eval_loss": aligned["metrics"].get("eval_loss")}})
        weights = aligned["fingerprints"]["weights"]["model"]["sha256"]
        run.add_fingerprint("weights", "model", weights, made=True, path=str(folders["align"] / "model"))
        _report(rewards, run.dir)
        Console().print(f"model: {folders['align'] / 'model'}; record and plot: {run.dir}", highlight=False)


def show_plan(config: RaftConfig, invocation: Invocation) -> None:
    """Print the command lines of the child runs."""
    plan = list(_plan(config, invocation))
    prompts = read_prompts(config.prompts)
    _check_children(plan[0])
    print(f"{len(prompts)} prompts; {config.iterations} iteration(s):")
    for children in plan:
        for child in children:
            print(shlex.join(child.invocation.command))


def _plan(config: RaftConfig, invocation: Invocation) -> Iterator[list[Child]]:
    """Compose the children of every iteration."""
    for name in ("iterations", "prompts_per_iteration"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UserError(f"{name}={value} must be at least 1")
    given = {verb: given_words(verb, getattr(config, verb), owned, by="raft") for verb, owned in OWNED.items()}
    folder = Path(config.output_dir)
    model = config.model
    for number in range(1, config.iterations + 1):
        common = [as_word("seed", config.seed + number - 1)]
        policy = [*common, *section_words("model", model)]
        names = {verb: f"{number}-{verb}" for verb in OWNED}
        words = {
            "sample": [as_word("prompts", str(_prompts_file(folder, number))), *policy],
            "score": [
                as_word("responses", str(folder / names["sample"])),
                as_word("model.name", config.reward),
                *common,
            ],
            "select": [as_word("scored", str(folder / names["score"])), *common],
            "align": [as_word("selected", str(folder / names["select"])), *policy],
        }
        yield [plan_child(invocation, names[verb], VERBS[verb], [*words[verb], *given[verb]]) for verb in OWNED]
        model = replace(model, name=str(folder / names["align"] / "model"), revision=None)


def _check_children(children: list[Child]) -> None:
    """Refuse what the later children would, before the earlier ones have worked for hours.

    Raises:
        UserError: naming the child.
    """
    sample, score, select, align = (structured(child.invocation) for child in children)
    responses = sampling_rules(sample).n
    if select.n is not None and not 1 <= select.n <= responses:
        raise UserError(f"select.n={select.n} must be between 1 and sample.n={responses}")
    check_language_model(sample.model)
    check_reward_model(score.model, "reward")
    checks: list[Callable[[], object]] = [partial(check_score, score), partial(check_align, align)]
    for child, check in zip(children[1::2], checks, strict=True):
        try:
            check()
        except UserError as error:
            raise UserError(f"{child.name}: {error}") from error


def _prompts_file(folder: Path, number: int) -> Path:
    return folder / f"prompts-{number}.jsonl"


def _part(count: int, size: int | None, number: int) -> list[int]:
    """Return the indices of an iteration's prompts: the next ``size`` of them, from the front again after the last."""
    size = min(size or count, count)
    return [index % count for index in range((number - 1) * size, number * size)]


def _report(rewards: list[tuple[float, float]], run_dir: Path) -> None:
    table = Table("iteration", "mean reward of all responses", "of the selected", header_style="bold")
    for number, (everything, best) in enumerate(rewards, start=1):
        table.add_row(str(number), f"{everything:.4f}", f"{best:.4f}")
    Console().print(table)
    steps = list(range(1, len(rewards) + 1))
    curves = {
        name: Curve(steps, values, values, values)
        for name, values in (
            ("all responses", [row[0] for row in rewards]),
            ("selected", [row[1] for row in rewards]),
        )
    }
    comparison({"mean reward": curves}, run_dir / "plots" / "rewards.png", across="iteration")
