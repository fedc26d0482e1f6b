"""What ``dtm evaluate`` reports of per-row losses: overall and by source; as a table, JSON and CSV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Column, Table

from reproalign.common.evaluation.losses import RowLoss
from reproalign.common.files import csv_text
from reproalign.dtm.study.metrics import bootstrap_token_mean, masked_accuracy, perplexity, released_accuracy

OVERALL, UNNAMED = "all", "(no source)"


@dataclass(frozen=True)
class Summary:
    """Measures of a set of rows.

    Attributes:
        name: source, or :data:`OVERALL`.
        rows: measured.
        tokens: supervised ones.
        loss: token mean of the negative log-likelihood, in nats.
        low: lower end of its bootstrap interval; None for a single row.
        high: upper end.
        perplexity: exp(loss).
        accuracy: share of the supervised tokens that greedy decoding would have chosen.
        accuracy_released: the release's measure; None under ``paper``, and of a single source.
    """

    name: str
    rows: int
    tokens: int
    loss: float
    low: float | None
    high: float | None
    perplexity: float
    accuracy: float
    accuracy_released: float | None = None


def summarise(
    losses: Sequence[RowLoss],
    sources: Sequence[str | None],
    *,
    confidence: float,
    resamples: int,
    seed: int,
    released: bool,
) -> list[Summary]:
    """Return the summary of all rows, and then of each source, the one with most rows first.

    Args:
        losses: of each row.
        sources: of each row; None: it has none.
        confidence: of the intervals.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        released: also compute the release's accuracy.
    """
    groups: dict[str, list[RowLoss]] = {}
    for loss, source in zip(losses, sources, strict=True):
        groups.setdefault(source or UNNAMED, []).append(loss)
    ordered = sorted(groups.items(), key=lambda entry: (-len(entry[1]), entry[0]))

    def summary(name: str, part: Sequence[RowLoss]) -> Summary:
        interval = bootstrap_token_mean(
            [loss.nll for loss in part],
            [loss.tokens for loss in part],
            confidence=confidence,
            resamples=resamples,
            seed=seed,
        )
        tokens, correct = sum(loss.tokens for loss in part), sum(loss.correct for loss in part)
        old = released_accuracy(correct, [loss.width for loss in part]) if released and name == OVERALL else None
        return Summary(
            name,
            len(part),
            tokens,
            interval.value,
            interval.low,
            interval.high,
            perplexity(interval.value),
            masked_accuracy(correct, tokens),
            old,
        )

    return [summary(OVERALL, losses), *(summary(name, part) for name, part in ordered)]


def table(summaries: Sequence[Summary], title: str, confidence: float) -> Table:
    """Return the table for the terminal."""
    drawn = Table(Column("rows of", overflow="fold"), title=title, title_style="bold", header_style="bold")
    for name in ("rows", "tokens", "loss", f"{confidence:.0%} interval", "perplexity", "accuracy"):
        drawn.add_column(name, justify="right", no_wrap=True)
    for number, entry in enumerate(summaries):
        ends = "" if entry.low is None else f"{entry.low:.3f} to {entry.high:.3f}"
        drawn.add_row(
            entry.name,
            str(entry.rows),
            str(entry.tokens),
            f"{entry.loss:.4f}",
            ends,
            f"{entry.perplexity:.2f}",
            f"{entry.accuracy:.3f}",
            end_section=number == 0,
        )
    return drawn


def as_csv(summaries: Sequence[Summary]) -> str:
    """Return the summaries as CSV with a header."""
    return csv_text(list(Summary.__dataclass_fields__), [list(asdict(entry).values()) for entry in summaries])


def as_metrics(summaries: Sequence[Summary]) -> dict[str, Any]:
    """Return the numbers for the record: those of all rows, and ``sources``."""
    numbers = [{name: value for name, value in asdict(entry).items() if name != "name"} for entry in summaries]
    by_source = {entry.name: value for entry, value in zip(summaries[1:], numbers[1:], strict=True)}
    return {**numbers[0], "sources": by_source}
