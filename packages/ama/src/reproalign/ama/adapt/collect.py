"""The verb ``collect``: D_θ, the responses of the aligned policy on which ratios are learned (paper, eq. 8 and D.5)."""

from __future__ import annotations

import logging
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from reproalign.ama.adapt.candidates import Quality, candidates, draw_best, prompt_key
from reproalign.ama.adapt.collect_config import CollectConfig
from reproalign.common.console import result_console, say
from reproalign.common.errors import UserError
from reproalign.common.files import sha256_json
from reproalign.common.generation.prompt_files import read_prompts
from reproalign.common.generation.samples import SCORED, find, read_sampled, write_rows
from reproalign.common.invocation import Invocation, structured
from reproalign.common.launch.children import Child, check_launches, given_words, plan_child, run_child
from reproalign.common.models.kind import check_language_model, check_reward_model
from reproalign.common.options.words import as_word, section_words
from reproalign.common.records import Run
from reproalign.common.verbs.iterations import SAMPLE, SCORE
from reproalign.common.verbs.sample import sampling_rules
from reproalign.common.verbs.score import check_score

D_THETA = "d_theta.jsonl"
OWNED = {
    "sample": ("prompts", "model", "seed", "output_dir", "layout", "n", "clean"),
    "score": ("responses", "model.name", "output_dir"),
}
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CollectPlan:
    """The child runs, none if the responses are scored already; where scored responses are; what a candidate is."""

    children: list[Child]
    scored: Path
    quality: Quality


def collect(config: CollectConfig, invocation: Invocation) -> None:
    """Write ``d_theta.jsonl``: id, prompt, messages, reward, index of each drawn response, the best first.

    Raises:
        UserError: for a mistake in the options, and if no response is a candidate.
        ReportedError: if a child failed; the same command goes on from it.
    """
    plan = make_plan(config, invocation)
    check_launches(plan.children)
    with Run.open(invocation) as run:
        for child in plan.children:
            run_child(run, child)
        rows = read_sampled(plan.scored, scored=True)
        run.add_fingerprint("data", "scored", sha256_json([vars(row) for row in rows]), path=str(plan.scored))
        found, counts = candidates(rows, plan.quality)
        if not found:
            why = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if count)
            raise UserError(f"D_θ would be empty: no response in {plan.scored} is a candidate ({why})")
        drawn = draw_best(found, config.top, config.draw, config.seed)
        if len(drawn) < config.draw:
            logger.warning(
                "%d candidates, of the best %d of which all are taken: fewer than draw=%d",
                len(found),
                config.top,
                config.draw,
            )
        write_rows(run.dir / D_THETA, drawn)
        run.add_fingerprint("data", "d_theta", sha256_json(drawn), made=True, rows=len(drawn))
        metrics: dict[str, Any] = {"responses": sum(len(row.responses) for row in rows), "candidates": len(found)}
        metrics |= {**counts, "top": min(config.top, len(found)), "drawn": len(drawn)}
        metrics["rewards"] = _report({"candidates": found, "D_θ": drawn})
        run.set_metrics(metrics)
        say(f"{len(drawn)} of {len(found)} candidates: {run.dir / D_THETA}")


def show_plan(config: CollectConfig, invocation: Invocation) -> None:
    """Print the command lines of the child runs, and what is taken of their responses."""
    plan = make_plan(config, invocation)
    for child in plan.children:
        print(shlex.join(child.invocation.command))
    print(f"{plan.scored}: {config.draw} of the {config.top} of the highest reward")


def make_plan(config: CollectConfig, invocation: Invocation) -> CollectPlan:
    """Check everything, and compose the children.

    Raises:
        UserError: naming the key, or the child, that is wrong.
    """
    quality = check_collect(config)
    if config.scored is not None:
        given = {name: getattr(config, name) for name in ("prompts", "reward", "sample", "score")}
        given |= {"model.name": config.model.name, "n": config.n != 1}
        for name in (name for name, value in given.items() if value):
            raise UserError(
                f"{name} has no meaning beside scored={config.scored}, which is sampled and scored; remove it"
            )
        return CollectPlan([], find(config.scored, SCORED, "scored"), quality)
    for name, value in (("prompts", config.prompts), ("model.name", config.model.name), ("reward", config.reward)):
        if not value:
            raise UserError(f"{name} is not set; give prompts, model.name and reward, or scored=FOLDER")
    children = _children(config, invocation, quality)
    return CollectPlan(children, Path(config.output_dir) / "score" / SCORED, quality)


def check_collect(config: CollectConfig) -> Quality:
    """Check the options that are collect's own; return what a candidate is.

    Raises:
        UserError: naming the key.
    """
    if config.draw > config.top:
        raise UserError(f"draw={config.draw} must not be above top={config.top}")
    excluded: set[str] = set()
    if config.exclude is not None:
        path = find(config.exclude, "eval_prompts.jsonl", "exclude")
        excluded = {prompt_key(prompt) for prompt in read_prompts(str(path))}
    filtered = config.filters == "lmflow" or (config.filters == "auto" and config.layout == "lmflow")
    return Quality("lmflow" if filtered else "none", config.min_length, config.dedup, frozenset(excluded))


def _children(config: CollectConfig, invocation: Invocation, quality: Quality) -> list[Child]:
    path = find(str(config.prompts), "prompts.jsonl", "prompts")
    read_prompts(str(path))
    sample = plan_child(
        invocation,
        "sample",
        SAMPLE,
        [
            as_word("prompts", str(path)),
            as_word("seed", config.seed),
            *section_words("model", config.model),
            as_word("layout", config.layout),
            as_word("n", config.n),
            as_word("clean", "lmflow" if quality.discard == "lmflow" else "stop"),
            *given_words("sample", config.sample, OWNED["sample"], by="collect"),
        ],
    )
    score = plan_child(
        invocation,
        "score",
        SCORE,
        [
            as_word("responses", str(Path(config.output_dir) / "sample")),
            as_word("model.name", config.reward),
            *given_words("score", config.score, OWNED["score"], by="collect"),
        ],
    )
    sampling, scoring = (structured(child.invocation.schema, child.invocation.config) for child in (sample, score))
    sampling_rules(sampling)
    check_language_model(sampling.model)
    check_reward_model(scoring.model, "reward")
    check_score(scoring)
    return [sample, score]


def _report(parts: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Print quantiles of the rewards of each part; return them with the means."""
    table = Table("rewards", "mean", *(f"{quantile:.0%}" for quantile in QUANTILES), header_style="bold")
    facts = {}
    for name, rows in parts.items():
        rewards = np.array([row["reward"] for row in rows], dtype=np.float64)
        values = np.quantile(rewards, QUANTILES).tolist()
        table.add_row(name, f"{rewards.mean():.4f}", *(f"{value:.4f}" for value in values))
        facts[name] = {"mean": float(rewards.mean())}
        facts[name] |= {f"quantile_{quantile:g}": value for quantile, value in zip(QUANTILES, values, strict=True)}
    result_console().print(table)
    return facts
