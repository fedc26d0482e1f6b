"""What ``ama evaluate`` writes: rewards by prompt, losses by text, answers for a judge, results, metrics, a table."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from reproalign.ama.frontier.config import EvaluateConfig
from reproalign.ama.frontier.measures import Estimate, Resampling, loss_estimate, mean_estimate, perplexity
from reproalign.ama.frontier.respond import PARTS, Answered
from reproalign.ama.frontier.texts import TokenRows
from reproalign.common.console import result_console, say
from reproalign.common.evaluation.alpacaeval import instruction_text, write_outputs
from reproalign.common.evaluation.losses import RowLoss
from reproalign.common.files import write_json
from reproalign.common.generation.samples import write_rows
from reproalign.common.models.load import load_tokenizer
from reproalign.common.records import Run
from reproalign.common.text.tokenize import Encoder

REWARDS, LOSSES, RESULTS, OUTPUTS = "rewards.jsonl", "losses.jsonl", "results.json", "outputs.json"
WORK = ".losses"  # of the run: what is measured, row by row, until it is written
Estimates = dict[str, Estimate]


def write_results(
    config: EvaluateConfig,
    run: Run,
    rows: list[Answered],
    texts: tuple[TokenRows, list[RowLoss]] | None,
    ratios: tuple[TokenRows, list[float], list[int]] | None,
) -> None:
    """Write the files of a run, put the metrics into its record, and print them.

    Args:
        config: of the evaluation.
        run: open.
        rows: prompts with responses and rewards; empty if nothing was sampled.
        texts: tokenised texts and their losses.
        ratios: tokenised responses, log π - log π_0 of each, in nats, and its tokens.
    """
    how = Resampling(config.confidence, config.resamples, config.seed)
    found: Estimates = {}
    more: dict[str, float] = {}
    if rows:
        lengths, by_row = _lengths(config, rows), _by_row(rows, ratios)
        found |= _of_responses(rows, lengths, how)
        if ratios is not None:
            found["kl"] = mean_estimate([sum(values) / len(values) for values in by_row], how)
            more["kl_per_token"] = sum(ratios[1]) / sum(ratios[2])
        instructions = [instruction_text(row.prompt) for row in rows]
        write_outputs(run.dir / OUTPUTS, instructions, [row.responses[0] for row in rows], config.model.name)
        write_rows(run.dir / REWARDS, (_line(*entry) for entry in zip(rows, lengths, by_row, strict=True)))
    if texts is not None:
        found |= _of_texts(*texts, how, run.dir)
    results = {
        "model": {"name": config.model.name, "revision": config.model.revision},
        "fingerprints": run.record["fingerprints"],
        "variant": config.variant,
        "interval": asdict(how),
        "measures": {name: asdict(entry) for name, entry in found.items()},
        **more,
    }
    write_json(run.dir / RESULTS, results)
    run.set_metrics(_metrics(found) | more)
    shutil.rmtree(run.dir / WORK, ignore_errors=True)
    for part in run.dir.glob(PARTS.format("*")):
        part.unlink()
    _print(config, found, run.dir)


def _lengths(config: EvaluateConfig, rows: Sequence[Answered]) -> list[list[int]]:
    encoder = Encoder(load_tokenizer(config.model))
    return [[len(ids) for ids in encoder.batch(row.responses)] for row in rows]


def _by_row(rows: Sequence[Answered], ratios: tuple[TokenRows, list[float], list[int]] | None) -> list[list[float]]:
    """Return the log ratios of each prompt's responses, 0 for an empty one; nothing if none were measured."""
    made = [[0.0] * len(row.responses) if ratios is not None else [] for row in rows]
    if ratios is not None:
        for (place, number), value in zip(ratios[0].source, ratios[1], strict=True):
            made[int(place)][number] = value
    return made


def _of_responses(rows: Sequence[Answered], lengths: Sequence[Sequence[int]], how: Resampling) -> Estimates:
    found: Estimates = {}
    if rows[0].rewards is not None:
        found["reward"] = mean_estimate([row.reward for row in rows], how)
    shares = [sum(row.discarded) / len(row.discarded) for row in rows]
    empty = [sum(not text for text in row.responses) / len(row.responses) for row in rows]
    found["length"] = mean_estimate([sum(row) / len(row) for row in lengths], how)
    return found | {"discard_rate": mean_estimate(shares, how), "empty_rate": mean_estimate(empty, how)}


def _of_texts(rows: TokenRows, losses: Sequence[RowLoss], how: Resampling, folder: Path) -> Estimates:
    """Return loss and perplexity of all texts and of each file, whose losses go to ``losses.jsonl``."""
    sums: dict[tuple[str | int, int], list[float]] = {}
    for place, loss in zip(rows.source, losses, strict=True):
        entry = sums.setdefault(place, [0, 0.0])
        entry[0] += loss.tokens
        entry[1] += loss.nll
    lines = ({"file": file, "row": row, "tokens": n, "nll": nll} for (file, row), (n, nll) in sums.items())
    write_rows(folder / LOSSES, lines)
    files = list(dict.fromkeys(file for file, _ in sums))
    found: Estimates = {}
    for name, chosen in [("", files), *((f"_{file}", [file]) for file in files if len(files) > 1)]:
        kept = [value for (file, _), value in sums.items() if file in chosen]
        mean = loss_estimate([nll for _, nll in kept], [int(tokens) for tokens, _ in kept], how)
        found |= {f"loss{name}": mean, f"perplexity{name}": perplexity(mean)}
    return found


def _line(row: Answered, lengths: Sequence[int], ratios: Sequence[float]) -> dict[str, Any]:
    rewards = {} if row.rewards is None else {"reward": row.reward, "rewards": row.rewards}
    measured = {"responses": row.responses, "discarded": row.discarded, "tokens": list(lengths)}
    return {"id": row.id, **rewards, **measured, **({"log_ratios": list(ratios)} if ratios else {})}


def _metrics(found: Mapping[str, Estimate]) -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    for name, entry in found.items():
        metrics[name] = entry.value
        if entry.stderr is not None:
            metrics[f"{name}_stderr"] = entry.stderr
    return metrics


def _print(config: EvaluateConfig, found: Mapping[str, Estimate], folder: Path) -> None:
    table = Table("measure", title=config.model.name, header_style="bold")
    for name in ("value", "standard error", f"{config.confidence:.0%} interval", "items"):
        table.add_column(name, justify="right")
    for name, entry in found.items():
        error = "" if entry.stderr is None else f"{entry.stderr:.4f}"
        interval = "" if entry.low is None else f"{entry.low:.4f} … {entry.high:.4f}"
        table.add_row(name, f"{entry.value:.4f}", error, interval, str(entry.items))
    console = result_console()
    console.print(table)
    say(f"record and results: {folder}")
