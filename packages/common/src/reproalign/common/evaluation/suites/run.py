"""Evaluating task by task: what was evaluated before is read, and an interrupted suite goes on where it stopped."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from reproalign.common.console import note_console
from reproalign.common.errors import UserError
from reproalign.common.evaluation.suites.config import SuiteConfig
from reproalign.common.evaluation.suites.experiment import Seeds, Subject, experiment
from reproalign.common.evaluation.suites.loading import LoadedTask
from reproalign.common.evaluation.suites.prepare import PreparedSuite, quiet
from reproalign.common.evaluation.suites.samples import task_hash, truncated, write_samples
from reproalign.common.evaluation.suites.sharing import share_examples
from reproalign.common.files import sha256_json, write_json
from reproalign.common.integrity import is_whole
from reproalign.common.manifests import seal

RESULT, SAMPLES = "result.json", "samples.jsonl"
ANSWER_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # lm-eval takes the first


@dataclass(frozen=True)
class TaskResult:
    """What one evaluation came to.

    Attributes:
        experiment: all that it depends on.
        metrics: lm-eval's, e.g. ``acc,none`` and ``acc_stderr,none``; None for a standard error that it has not.
        questions: how many were asked, and how many the data have.
        truncated: questions whose prompt lost its beginning, being longer than the model takes.
        task_hash: lm-eval's, over questions, prompts and targets; equal for equal prompts.
        seconds: it took, when it was evaluated.
        processes: that shared it.
        folder: in the cache; its ``samples.jsonl`` has prompts and answers if they were asked for.
        fresh: evaluated in this run.
    """

    experiment: dict[str, Any]
    metrics: dict[str, float | None]
    questions: tuple[int, int]
    truncated: int
    task_hash: str
    seconds: float
    processes: int
    folder: Path
    fresh: bool


@quiet()
def run_suite(
    prepared: PreparedSuite,
    suite: SuiteConfig,
    subject: Subject,
    seeds: Seeds,
    backend: Callable[[], Any],
    cache: Path,
) -> dict[str, TaskResult]:
    """Evaluate everything that ``cache`` does not hold; return the results by the evaluations' names.

    With several processes all call this; the first one reads and writes, and it alone returns results.

    Args:
        prepared: tasks and data.
        suite: how the model is asked.
        subject: which model it is.
        seeds: lm-eval's.
        backend: loads the model; called only if there is something left to evaluate.
        cache: folder of all results that there are.

    Raises:
        UserError: if there are fewer questions than processes, or answers longer than the model.
    """
    state, console = PartialState(), note_console()
    planned = plan(prepared, suite, subject, seeds, cache)
    pending = [[name for name, (_, folder) in planned.items() if not is_complete(folder, samples=suite.samples)]]
    broadcast_object_list(pending)  # the cache as the first process sees it
    for name in pending[0]:
        _check_shares(name, planned[name][0], state.num_processes)
    loaded = backend() if pending[0] else None
    for name in pending[0]:
        _check_length(name, prepared.evaluations[name], loaded)
    for number, name in enumerate(pending[0], start=1):
        if state.is_main_process:
            facts = planned[name][0]
            rows, shots = facts["data"]["rows"], facts["shots"]
            console.print(f"{name} ({number} of {len(pending[0])}): {rows} questions, {shots} shots")
        _evaluate(prepared.evaluations[name], *planned[name], suite, subject, seeds, loaded)
    if not state.is_main_process:
        return {}
    return {name: _read(folder, facts, name in pending[0]) for name, (facts, folder) in planned.items()}


@quiet()
def plan(
    prepared: PreparedSuite, suite: SuiteConfig, subject: Subject, seeds: Seeds, cache: Path
) -> dict[str, tuple[dict[str, Any], Path]]:
    """Return of each evaluation, by its name, all that it depends on, and the folder that this is the key of."""
    planned = {}
    for name, evaluation in prepared.evaluations.items():
        facts = experiment(evaluation, suite, subject, seeds)
        planned[name] = (facts, cache / "evaluations" / sha256_json(facts)[:32])
    return planned


def is_complete(folder: Path, *, samples: bool) -> bool:
    """Say whether a folder of the cache holds a result, and its samples if they are wanted, as they were written."""
    return is_whole(folder) and (not samples or (folder / SAMPLES).is_file())


def _evaluate(
    evaluation: LoadedTask,
    facts: dict[str, Any],
    folder: Path,
    suite: SuiteConfig,
    subject: Subject,
    seeds: Seeds,
    backend: Any,
) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    state, started = PartialState(), time.perf_counter()
    # Forks of a process with threads and a model on its device may hang; the draws of lm-eval's bootstrap are the same.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    share_examples(evaluation.task, state.process_index, state.num_processes)
    output = simple_evaluate(
        model=backend,
        tasks=[evaluation.task],
        num_fewshot=evaluation.shots,
        limit=suite.limit,
        system_instruction=suite.system_message,
        apply_chat_template=subject.template is not None,
        fewshot_as_multiturn=suite.fewshot_as_multiturn,
        task_manager=TaskManager(include_defaults=False),
        random_seed=seeds.python,
        numpy_random_seed=seeds.numpy,
        torch_random_seed=seeds.torch,
        fewshot_random_seed=seeds.fewshot,
        confirm_run_unsafe_code=suite.run_code,
    )
    if output is None:  # another process has it
        return
    name = evaluation.task.config.task
    samples = output["samples"][name]
    record = {
        "experiment": facts,
        "metrics": {key: _number(value) for key, value in output["results"][name].items() if "," in key},
        "questions": {"effective": facts["data"]["rows"], "original": output["n-samples"][name]["original"]},
        "truncated": truncated(samples, backend),
        "task_hash": task_hash(samples),
        "seconds": time.perf_counter() - started,
        "processes": state.num_processes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    if suite.samples:
        write_samples(folder / SAMPLES, samples)
    write_json(folder / RESULT, record)
    seal(folder)


def copy_samples(results: Mapping[str, TaskResult], folder: Path) -> dict[str, Path]:
    """Copy the samples of all results to ``<folder>/<name>.jsonl``; return where they are."""
    copies = {}
    for name, result in results.items():
        copies[name] = folder / f"{name}.jsonl"
        copies[name].parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(result.folder / SAMPLES, copies[name])
    return copies


def _read(folder: Path, facts: dict[str, Any], fresh: bool) -> TaskResult:
    record = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    questions = (record["questions"]["effective"], record["questions"]["original"])
    rest = {key: record[key] for key in ("metrics", "truncated", "task_hash", "seconds", "processes")}
    return TaskResult(facts, questions=questions, folder=folder, fresh=fresh, **rest)


def _check_shares(name: str, facts: Mapping[str, Any], processes: int) -> None:
    if facts["data"]["rows"] < processes:
        raise UserError(
            f"{name} has {facts['data']['rows']} questions for launch.processes={processes}; use fewer processes"
        )


def _check_length(name: str, evaluation: LoadedTask, backend: Any) -> None:
    if evaluation.task.OUTPUT_TYPE != "generate_until":
        return
    given = evaluation.task.config.generation_kwargs or {}
    longest = int(next((given[name] for name in ANSWER_LENGTHS if given.get(name)), backend.max_gen_toks))
    if longest >= backend.max_length:
        raise UserError(
            f"{name} asks for answers of up to {longest} tokens, and the model takes {backend.max_length} in all; "
            "raise suite.max_length, or leave it out of suite.tasks"
        )


def _number(value: Any) -> float | None:
    """Return a metric as JSON can carry it; lm-eval writes "N/A" for a standard error that it cannot give."""
    number = float(value) if isinstance(value, int | float) or hasattr(value, "item") else math.nan
    return number if math.isfinite(number) else None
