"""``more-rm score``: the rewards of sampled responses, and what the best of n of them would earn."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from reproalign.common.errors import UserError
from reproalign.common.evaluation.plots import Curve, comparison
from reproalign.common.files import recover_lines, sha256_json, write_text
from reproalign.common.generation.best_of_n import best_of_n, sizes
from reproalign.common.invocation import Invocation
from reproalign.common.models.identify import identify_weights
from reproalign.common.records import Run
from reproalign.more.config import RewardModelConfig, ScoreConfig
from reproalign.more.sampled import RESPONSES, SCORED, Sampled, find, read_sampled
from reproalign.more.scoring import Scorer

PARTIAL = "scored.partial.jsonl"
CHUNK = 16  # batches of responses that are scored before they are written


def score(config: ScoreConfig, invocation: Invocation) -> None:
    """Score every response of ``responses`` into ``scored.jsonl``: id, prompt, responses, scores.

    The file is also a domain that ``more-rm train`` reads, and what ``more-rm select`` chooses from. An interrupted run
    goes on after the last chunk of rows that it wrote.
    """
    if config.batch_size < 1:
        raise UserError(f"batch_size={config.batch_size} must be at least 1")
    path = find(config.responses, RESPONSES, "responses")
    rows = read_sampled(path)
    with Run.open(invocation) as run:
        run.add_fingerprint("data", "responses", sha256_json([asdict(row) for row in rows]), path=config.responses)
        weights = identify_weights(config.model.name, config.model.revision)
        run.add_fingerprint("weights", "reward", weights, name=config.model.name)
        scored = _score_all(config, rows, run.dir / PARTIAL)
        (run.dir / PARTIAL).replace(run.dir / SCORED)
        run.set_metrics(_report(scored, run.dir))
        Console().print(f"scores: {run.dir / SCORED}; plot: {run.dir / 'plots'}", highlight=False)


def _score_all(config: ScoreConfig, rows: list[Sampled], path: Path) -> list[Sampled]:
    at_once = max(1, CHUNK * config.batch_size // len(rows[0].responses))
    done = _read_done(path, rows)
    whole = len(done) if len(done) == len(rows) else len(done) // at_once * at_once
    if whole < len(done):  # a chunk that was not written to its end is scored again: texts are padded as their chunk is
        write_text(path, "".join(f"{line}\n" for line in recover_lines(path)[:whole]))
        done = done[:whole]
    if len(done) == len(rows):
        return done
    scorer = Scorer(config.model, config.text, config.variant, batch_size=config.batch_size)
    with path.open("a", encoding="utf-8") as stream:
        for start in track(range(len(done), len(rows), at_once), description="scoring"):
            part = rows[start : start + at_once]
            rewards = iter(check_finite(scorer([text for row in part for text in row.dialogues()]), config.model))
            for row in part:
                with_scores = replace(row, scores=[next(rewards) for _ in row.responses])
                stream.write(json.dumps(asdict(with_scores), ensure_ascii=False) + "\n")
                done.append(with_scores)
            stream.flush()
    return done


def check_finite(rewards: list[float], model: RewardModelConfig) -> list[float]:
    """Return ``rewards`` if they are numbers that can be compared.

    Raises:
        UserError: naming the model that gave others.
    """
    if not np.isfinite(rewards).all():
        raise UserError(
            f"model.name={model.name} gives rewards that are not finite; is it a trained reward model, and is "
            "model.dtype wide enough?"
        )
    return rewards


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
    Console().print(table)
    band = [[mean + sign * error for mean, error in zip(means, errors, strict=True)] for sign in (-1, 1)]
    panels = {"reward of the best of n": {"mean and standard error": Curve(counts, means, *band)}}
    comparison(panels, run_dir / "plots" / "best-of-n.png", across="n, responses per prompt")
    everything = scores.flatten().tolist()
    return {
        "prompts": len(rows),
        "mean_reward": fmean(everything),
        "reward_std": stdev(everything) if len(everything) > 1 else 0.0,
        "best_of": {str(n): mean for n, mean in zip(counts, means, strict=True)},
    }
