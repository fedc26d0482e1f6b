"""The verb ``perplexity``: of given answers to given prompts under any language model."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from rich.table import Table

from reproalign.common.console import result_console, say
from reproalign.common.errors import UserError
from reproalign.common.evaluation.losses import LossScorer, RowLoss, measure, remove_parts
from reproalign.common.evaluation.perplexity import answer_tokens, is_measured, perplexities, read_answers
from reproalign.common.files import sha256_json, write_json, write_text
from reproalign.common.invocation import Invocation
from reproalign.common.launch.plan import check_in_force
from reproalign.common.logprobs.model import install_completion_logps
from reproalign.common.models.identify import used_weights
from reproalign.common.models.kind import check_language_model
from reproalign.common.models.load import load_causal_lm, load_tokenizer
from reproalign.common.records import Run
from reproalign.common.text.collate import RowCollator, pad_id
from reproalign.common.verbs.config import PerplexityConfig

RESULTS, ANSWERS = "perplexity.json", "answers.jsonl"
SHOWN = ("perplexity", "answer_perplexity", "answer_perplexity_released", "exp_mean_loss", "answers_above_gate")


def perplexity(config: PerplexityConfig, invocation: Invocation) -> None:
    """Measure the perplexities of each file's answers (:mod:`reproalign.common.evaluation.perplexity`).

    ``perplexity.json`` holds the measures by file, ``answers.jsonl`` of each answer file, row, tokens and the mean loss
    in nats. An interrupted run goes on with the next batch.

    Raises:
        UserError: for a mistake in the options, the rows or the model.
    """
    _check(config)
    state = PartialState(cpu=not torch.accelerator.is_available())
    check_in_force(config.launch.strategy, state.distributed_type.value)
    check_language_model(config.model)
    answers = {Path(path).stem: read_answers(path, config.answer, config.max_rows) for path in config.files}
    if len(answers) < len(config.files):
        raise UserError(f"files={list(config.files)}: two have one name; results are told apart by it")
    tokenizer = load_tokenizer(config.model)
    tokens = {name: answer_tokens(rows, tokenizer, config.max_length) for name, rows in answers.items()}
    source = [(name, k) for name, rows in tokens.items() for k, row in enumerate(rows) if is_measured(row)]
    if not source:
        raise UserError(f"files={list(config.files)}: no answer has a token within max_length={config.max_length}")

    def load() -> LossScorer:
        model = load_causal_lm(config.model, trainable=False)
        model.to(state.device)
        install_completion_logps(model)
        return LossScorer(model, RowCollator(pad_id(tokenizer)))

    with Run.open(invocation, is_main=state.is_main_process) as run:
        if state.is_main_process:
            used_weights(run, "model", config.model.name, config.model.revision)
            for name, rows in answers.items():
                run.add_fingerprint("data", name, sha256_json([vars(row) for row in rows]), rows=len(rows))
        state.wait_for_everyone()  # the folder is there
        measured = Dataset.from_list([tokens[name][k] for name, k in source])
        losses = measure(measured, run.dir, load, batch_size=config.batch_size, sort=True, state=state)
        if state.is_main_process:
            _report(config, {name: len(rows) for name, rows in tokens.items()}, source, losses, run)


def _report(
    config: PerplexityConfig,
    counts: dict[str, int],
    source: Sequence[tuple[str, int]],
    losses: Sequence[RowLoss],
    run: Run,
) -> None:
    by_file: dict[str, dict[int, RowLoss]] = {name: {} for name in counts}
    for (name, row), loss in zip(source, losses, strict=True):
        by_file[name][row] = loss
    results: dict[str, Any] = {name: _measures(by_file[name], counts[name], config.gate) for name in counts}
    lines = [
        {"file": name, "row": row, "tokens": loss.tokens, "loss": loss.nll / loss.tokens}
        for (name, row), loss in zip(source, losses, strict=True)
    ]
    write_text(run.dir / ANSWERS, "".join(json.dumps(line) + "\n" for line in lines))
    write_json(run.dir / RESULTS, results)
    run.set_metrics(results)
    remove_parts(run.dir)
    table = Table("file", "answers", *(name.replace("_", " ") for name in SHOWN), title=config.model.name)
    for name, found in results.items():
        table.add_row(name, str(counts[name]), *(f"{found[key]:.4f}" if key in found else "none" for key in SHOWN))
    result_console().print(table)
    say(f"record and losses: {run.dir}")


def _measures(losses: dict[int, RowLoss], count: int, gate: float) -> dict[str, float]:
    means = [losses[row].nll / losses[row].tokens if row in losses else math.nan for row in range(count)]
    found = {"answers": float(count), **perplexities(means, gate)}
    tokens = sum(loss.tokens for loss in losses.values())
    if tokens:
        found["perplexity"] = math.exp(min(sum(loss.nll for loss in losses.values()) / tokens, 700.0))
    return found


def _check(config: PerplexityConfig) -> None:
    if not config.files:
        raise UserError("files is empty; give files of rows with prompt and answer, or chosen")
    if config.model.chat_template is not None:
        raise UserError("model.chat_template: prompts and answers are read as they are; leave it out")
