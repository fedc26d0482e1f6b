"""The verb ``score``: the rewards of sampled responses, and what the best of n of them would earn."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
from rich.table import Table

from reproalign.common.config.model import LoadedModelConfig
from reproalign.common.console import result_console, say, track
from reproalign.common.data.records import Message
from reproalign.common.errors import UserError
from reproalign.common.evaluation.plots import MeanCurve, comparison
from reproalign.common.files import sha256_json
from reproalign.common.generation.best_of_n import best_of_n, sizes
from reproalign.common.generation.samples import RESPONSES, SCORED, Sampled, find, read_sampled
from reproalign.common.invocation import Invocation
from reproalign.common.journal import growing, keep_lines, recover_lines
from reproalign.common.models.identify import used_weights
from reproalign.common.records import Run
from reproalign.common.reward.rules import RewardRules, scoring_rules, told_rules
from reproalign.common.reward.scorer import RewardScorer, check_finite
from reproalign.common.verbs.config import ScoreConfig

CHUNK = 16  # batches of responses that are scored before they are written


def score(config: ScoreConfig, invocation: Invocation) -> None:
    """Score every response of ``responses`` into ``scored.jsonl``: id, prompt, responses, scores.

    The file is what ``select`` chooses from, and a domain that MORE trains on. An interrupted run goes on after the
    last chunk of rows that it wrote.
    """
    rules = check_score(config)
    path = find(config.responses, RESPONSES, "responses")
    rows = read_sampled(path)
    with Run.open(invocation) as run:
        run.add_fingerprint("data", "responses", sha256_json([asdict(row) for row in rows]), path=config.responses)
        used_weights(run, "reward", config.model.name, config.model.revision)
        scored = score_responses(rows, config.model, rules, run.dir / SCORED, batch_size=config.batch_size)
        run.set_metrics(_report(scored, run.dir))
        say(f"scores: {run.dir / SCORED}; plot: {run.dir / 'plots'}")


def check_score(config: ScoreConfig) -> RewardRules:
    """Return how the reward model reads a text.

    Raises:
        UserError: for options that nothing can be scored with.
    """
    return scoring_rules(config.model, told_rules(config.model, config.text, config.variant))


def score_responses(
    rows: list[Sampled],
    model: LoadedModelConfig,
    rules: RewardRules,
    path: Path,
    *,
    batch_size: int,
    key: str = "model.name",
) -> list[Sampled]:
    """Return ``rows`` with the rewards of their responses, which ``path`` holds in the end.

    A file beside it grows chunk by chunk, and is read if an interrupted run left it.

    Args:
        rows: prompts with equally many responses each.
        model: the reward model; loaded only if there is something left to score.
        rules: how it reads a text.
        path: where the scored rows go.
        batch_size: texts per forward.
        key: the option that names the model.

    Raises:
        UserError: for a model that cannot score, or a file that holds other rows.
    """

    def load() -> Callable[[Sequence[list[Message]]], list[float]]:
        scorer = RewardScorer(model, rules, batch_size=batch_size, key=key)
        return lambda dialogues: check_finite(scorer(dialogues), model, key)

    return score_rows(rows, load, path, batch_size=batch_size)


def score_rows(
    rows: list[Sampled],
    load: Callable[[], Callable[[Sequence[list[Message]]], list[float]]],
    path: Path,
    *,
    batch_size: int,
) -> list[Sampled]:
    """As :func:`score_responses`, by whatever scores dialogues.

    Args:
        rows: prompts with equally many responses each.
        load: makes what scores dialogues; called only if there is something left to score.
        path: where the scored rows go.
        batch_size: texts that are scored at once.

    Raises:
        UserError: for a file that holds other rows.
    """
    partial = path.with_suffix(".partial.jsonl")
    if path.is_file():  # an interrupted run was done with it
        path.replace(partial)
    at_once = max(1, CHUNK * batch_size // len(rows[0].responses))
    done = _read_done(partial, rows)
    whole = len(done) if len(done) == len(rows) else len(done) // at_once * at_once
    if whole < len(done):  # a chunk that was not written to its end is scored again: texts are padded as their chunk is
        keep_lines(partial, whole)
        done = done[:whole]
    if whole < len(rows):
        score_all = load()
        with growing(partial) as write:
            for start in track(range(whole, len(rows), at_once), "scoring"):
                part = rows[start : start + at_once]
                rewards = iter(score_all([text for row in part for text in row.dialogues()]))
                for row in part:
                    done.append(replace(row, scores=[next(rewards) for _ in row.responses]))
                write("".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in done[start:]))
    if len(recover_lines(partial)) != len(rows):
        raise UserError(f"{partial}: not the {len(rows)} rows that were scored; give the same command again")
    partial.replace(path)
    return done


def _read_done(path: Path, rows: list[Sampled]) -> list[Sampled]:
    done = []
    for number, line in enumerate(recover_lines(path)):
        try:
            found = Sampled(**json.loads(line))
            fits = number < len(rows) and replace(found, scores=None) == rows[number]
        except (ValueError, TypeError):
            fits = False
        if not fits:
            raise UserError(f"{path} line {number + 1}: not a row of this run; choose another output_dir")
        done.append(found)
    return done


def _report(rows: list[Sampled], run_dir: Path) -> dict[str, object]:
    """Print and draw the best-of-n curve; return it with the mean reward."""
    scores = np.asarray([row.scores for row in rows], dtype=np.float64)
    counts = sizes(scores.shape[1])
    table = Table("best of", "mean reward", "standard error", header_style="bold")
    means, errors = [], []
    for n in counts:
        chosen = scores[np.arange(len(scores)), best_of_n(scores, n).selected]
        means.append(float(chosen.mean()))
        errors.append(stdev(chosen.tolist()) / len(chosen) ** 0.5 if len(chosen) > 1 else 0.0)
        table.add_row(str(n), f"{means[-1]:.4f}", f"{errors[-1]:.4f}")
    result_console().print(table)
    band = [[mean + sign * error for mean, error in zip(means, errors, strict=True)] for sign in (-1, 1)]
    panels = {"reward of the best of n": {"mean and standard error": MeanCurve(counts, means, *band)}}
    comparison(
        panels,
        run_dir / "plots" / "best-of-n.png",
        across="n, responses per prompt",
        measured="expected reward of the best",
    )
    everything = scores.flatten().tolist()
    return {
        "prompts": len(rows),
        "mean_reward": fmean(everything),
        "reward_std": stdev(everything) if len(everything) > 1 else 0.0,
        "best_of": {str(n): mean for n, mean in zip(counts, means, strict=True)},
    }
