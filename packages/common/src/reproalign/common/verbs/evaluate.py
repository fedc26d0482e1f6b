"""``evaluate suite=NAME``: a suite of lm-eval's tasks on a model, as a recorded run."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from rich.table import Table

from reproalign.common.console import result_console, say
from reproalign.common.data.cache import cache_folder, fingerprint_tokenizer
from reproalign.common.errors import UserError
from reproalign.common.evaluation.suites.backend import (
    begins_with_bos,
    check_backend,
    hf_backend,
    use_template,
    vllm_backend,
)
from reproalign.common.evaluation.suites.config import EvaluateSuiteConfig
from reproalign.common.evaluation.suites.experiment import Seeds, Subject
from reproalign.common.evaluation.suites.prepare import check_suite, prepare
from reproalign.common.evaluation.suites.report import as_csv, as_json, notes, table
from reproalign.common.evaluation.suites.rows import SuiteRow, rows_of
from reproalign.common.evaluation.suites.run import TaskResult, copy_samples, is_complete, plan, run_suite
from reproalign.common.evaluation.suites.samples import show
from reproalign.common.files import space_needed, write_json, write_text
from reproalign.common.invocation import Invocation
from reproalign.common.launch.plan import AUTO, check_in_force
from reproalign.common.models.identify import identify_settings, identify_weights
from reproalign.common.models.load import load_causal_lm, load_tokenizer, model_path
from reproalign.common.records import Run


def evaluate_suite(config: EvaluateSuiteConfig, invocation: Invocation) -> None:
    """Evaluate a model on a suite; write ``results.json``, ``results.csv`` and, if asked for, ``samples/``.

    What the cache holds of the same experiment is not evaluated again.

    Raises:
        UserError: for anything wrong in the suite, its data or the model's folder, before a model is loaded.
    """
    _check_strategy(config.launch.strategy)
    # Without the word, processes on a machine without accelerators would not know of each other.
    state = PartialState(cpu=not torch.accelerator.is_available())
    check_in_force(config.launch.strategy, state.distributed_type.value)
    check_backend(config.suite, config.model, state.num_processes)
    model_path(config.model.name)
    with state.main_process_first():  # the others find the data prepared
        prepared = prepare(config.suite)
    tokenizer = load_tokenizer(config.model)
    subject = _subject(config, tokenizer, state)
    cache = cache_folder(config.cache_dir)

    def load() -> Any:
        if config.suite.backend == "vllm":
            return vllm_backend(
                config.model, model_path(config.model.name, largest=None), config.suite, subject.template
            )
        return hf_backend(load_causal_lm(config.model, trainable=False), tokenizer, config.suite)

    full = f"output_dir={config.output_dir} or {cache}"
    with space_needed(full), Run.open(invocation, is_main=state.is_main_process) as run, space_needed(full):
        run.add_fingerprint("weights", "model", subject.model, name=config.model.name)
        results = run_suite(prepared, config.suite, subject, Seeds.of(config.seed), load, cache)
        if not state.is_main_process:
            return
        for name, result in results.items():
            run.add_fingerprint("data", name, result.experiment["data"]["sha256"], rows=result.questions[0])
        rows = rows_of(config.suite, prepared, results)
        run.set_metrics(_metrics(rows))
        model = {"name": config.model.name, "revision": config.model.revision, **asdict(subject)}
        write_json(run.dir / "results.json", as_json(config.suite, model, rows, results))
        write_text(run.dir / "results.csv", as_csv(rows))
        samples = copy_samples(results, run.dir / "samples") if config.suite.samples else {}
        _print(config, rows, results, samples, run.dir)


def preview_suite(config: EvaluateSuiteConfig, _: Invocation) -> None:
    """Check suite, data and tokenizer as a run would, and print what it would evaluate and what the cache has."""
    check_options(config)
    state = PartialState(cpu=not torch.accelerator.is_available())
    model_path(config.model.name)
    prepared = prepare(config.suite)
    subject = _subject(config, load_tokenizer(config.model), state)
    planned = plan(prepared, config.suite, subject, Seeds.of(config.seed), cache_folder(config.cache_dir))
    drawn = Table("evaluation", "shots", "questions", "in the cache", header_style="bold")
    for name, (facts, folder) in planned.items():
        there = "yes" if is_complete(folder, samples=config.suite.samples) else "no"
        drawn.add_row(name, str(facts["shots"]), str(facts["data"]["rows"]), there)
    result_console().print(drawn)


def check_options(config: EvaluateSuiteConfig) -> None:
    """Check the options alone, for a model and data that need not be there yet.

    Raises:
        UserError: naming the key.
    """
    if config.launch.strategy != AUTO:
        _check_strategy(config.launch.strategy)
    check_backend(config.suite, config.model, config.launch.processes)
    check_suite(config.suite)


def _check_strategy(strategy: str) -> None:
    if strategy not in ("single", "ddp"):
        raise UserError(
            f"launch.strategy={strategy} splits a model that is trained; evaluation shares the questions among whole "
            "models: use launch=ddp"
        )


def _subject(config: EvaluateSuiteConfig, tokenizer: Any, state: PartialState) -> Subject:
    model = config.model
    weights = [identify_weights(model.name, model.revision) if state.is_main_process else ""]
    broadcast_object_list(weights)  # read once, which takes its time for large ones
    fingerprint = fingerprint_tokenizer(tokenizer)  # before the suite's template is set, which is stored by itself
    return Subject(
        model=weights[0],
        tokenizer=fingerprint,
        bos=begins_with_bos(tokenizer, config.suite.add_bos),
        template=use_template(tokenizer, config.suite),
        held={
            **{name: getattr(model, name) for name in ("dtype", "attn_implementation", "quantization")},
            "settings": identify_settings(model.name),
            **({"gemma_numerics": model.gemma_numerics} if model.gemma_numerics else {}),
        },
        versions={"vllm": version("vllm")} if config.suite.backend == "vllm" else {},
    )


def _metrics(rows: list[SuiteRow]) -> dict[str, Any]:
    """Return benchmarks and averages for the record; where one has several metrics, their names are added."""
    shown = [row for row in rows if row.kind != "subtask"]
    times = Counter(row.name for row in shown)
    return {
        row.name if times[row.name] == 1 else f"{row.name}.{row.metric},{row.filter}": {
            "value": row.value,
            "stderr": row.stderr,
            "questions": row.questions,
        }
        for row in shown
    }


def _print(
    config: EvaluateSuiteConfig,
    rows: list[SuiteRow],
    results: dict[str, TaskResult],
    samples: dict[str, Path],
    folder: Path,
) -> None:
    console = result_console()
    for name, file in samples.items():
        console.print(f"\n{name}", style="bold")
        console.print(show(file))
    console.print(table(config.suite, config.model.name, rows))
    for line in notes(rows):
        say(f"- {line}")
    known = sum(not result.fresh for result in results.values())
    if known:
        console.print(f"{known} of {len(results)} evaluations were there already, from the same experiment")
    places = "results.json, results.csv" + (", samples/" if samples else "")
    say(f"record and results ({places}): {folder}")
