"""Which items a model gets wrong: questions of a suite, or held-out rows by a stated rule."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reproalign.common.errors import UserError, choose
from reproalign.common.records.handed_on import intact
from reproalign.dtm.study.config import ErrorsConfig
from reproalign.dtm.study.results import check_same_rows, read_evaluation

METRICS = ("exact_match", "acc", "pass@1", "em")  # right or wrong for each question; the first that a task has


@dataclass(frozen=True)
class Items:
    """Items that several models were tried on.

    Attributes:
        ids: of all items.
        wrong: folder of an evaluation -> ids of what its model gets wrong.
        rule: when an item is wrong, in words.
    """

    ids: list[str]
    wrong: dict[str, frozenset[str]]
    rule: str


def read_items(config: ErrorsConfig) -> Items:
    """Read the evaluations of the sub-models and of the merged model.

    Raises:
        UserError: for folders of two kinds, other items, a task or metric that is not there, or a rule that does not
            fit.
    """
    folders = [*config.models, config.merged]
    with_samples = [(Path(folder).expanduser() / "samples").is_dir() for folder in folders]
    if any(with_samples):
        if not all(with_samples):
            odd = folders[with_samples.index(False)]
            raise UserError(f"{odd} has no samples/ as the others have; evaluate it with suite.samples=true")
        if config.rule is not None or config.base is not None:
            raise UserError("rule and base are for evaluations of rows; questions of a suite are scored right or wrong")
        return _questions(config, folders)
    for name in ("tasks", "metric"):
        if getattr(config, name) is not None:
            raise UserError(f"{name} is for a suite's samples, and {folders[0]} has none (suite.samples=true)")
    return _rows(config, folders)


def _rows(config: ErrorsConfig, folders: Sequence[str]) -> Items:
    if config.rule is None:
        raise UserError("rule is not set; say when a row is an error: rule=accuracy or rule=loss")
    if config.rule == "loss" and config.base is None:
        raise UserError("rule=loss compares with the base model; set base to the folder of its evaluation")
    if config.rule == "accuracy" and config.base is not None:
        raise UserError("base is for rule=loss alone; leave it out")
    evaluations = {folder: read_evaluation(folder) for folder in folders}
    base = read_evaluation(config.base) if config.base else None
    check_same_rows([*evaluations.values(), *([base] if base else [])], tokens=True)
    limits = {row["index"]: row["nll"] for row in base.rows()} if base else {}
    wrong, ids = {}, []
    for folder, evaluation in evaluations.items():
        rows = evaluation.rows()
        ids = [str(row["index"]) for row in rows]
        wrong[folder] = frozenset(
            str(row["index"])
            for row in rows
            if (row["nll"] > limits[row["index"]] if base else row["correct"] < config.threshold * row["tokens"])
        )
    words = "loss above the base model's" if base else f"fewer than {config.threshold:.0%} of the tokens hit"
    return Items(ids, wrong, words)


def _questions(config: ErrorsConfig, folders: Sequence[str]) -> Items:
    scored = {folder: _scores(folder, config) for folder in folders}
    first = scored[folders[0]]
    for folder, scores in scored.items():
        if scores.keys() != first.keys():
            lacking = sorted(first.keys() ^ scores.keys())[0]
            raise UserError(
                f"{folders[0]} and {folder} have different questions (e.g. {lacking}); evaluate both on the same tasks"
            )
    wrong = {
        folder: frozenset(name for name, score in scores.items() if not score) for folder, scores in scored.items()
    }
    return Items(list(first), wrong, "score 0")


def _scores(folder: str, config: ErrorsConfig) -> dict[str, float]:
    files = {path.stem: path for path in sorted((Path(folder).expanduser() / "samples").glob("*.jsonl"))}
    tasks = [choose(f"task in {folder}/samples", name, files) for name in config.tasks or files]
    scores: dict[str, float] = {}
    for task in tasks:
        found: dict[str, float] = {}
        for line in intact(files[task]).read_text(encoding="utf-8").splitlines():
            sample = json.loads(line)
            score = _score(sample["scores"], config.metric)
            if score is not None:
                found.setdefault(f"{task}:{sample['question']}:{_digest(sample['prompt'])}", score)
        if not found and config.tasks:
            raise UserError(f"{folder}: task {task} has no metric {config.metric or ' or '.join(METRICS)}")
        scores |= found
    if not scores:
        raise UserError(f"{folder}/samples: no question has a metric {config.metric or ' or '.join(METRICS)}")
    return scores


def _score(scores: Mapping[str, object], metric: str | None) -> float | None:
    for name in (metric,) if metric else METRICS:
        value = scores.get(name)
        if isinstance(value, int | float):
            return float(value)
    return None


def _digest(prompt: str) -> str:
    """Return what tells one question from another at the same place: a part of the SHA-256 of its prompt."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:8]
