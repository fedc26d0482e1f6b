"""``dtm study tokens``: which tokens lose most loss early in the training, and which late."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from rich.table import Table

from reproalign.common.config.model import LoadedModelConfig
from reproalign.common.console import result_console, say
from reproalign.common.errors import UserError
from reproalign.common.files import csv_text, write_json, write_text
from reproalign.common.invocation import Invocation
from reproalign.common.models.load import load_tokenizer
from reproalign.common.records import Run
from reproalign.dtm.study.config import TokensStudyConfig
from reproalign.dtm.study.plots import bars
from reproalign.dtm.study.results import check_same_rows, read_evaluation


@dataclass(frozen=True)
class Learned:
    """A token and what a stage of the training did to it.

    Attributes:
        id: of the token.
        delta: mean loss before - after over its occurrences, in nats.
        count: of its occurrences as a target.
    """

    id: int
    delta: float
    count: int


def learned_tokens(
    ids: ArrayLike, before: ArrayLike, after: ArrayLike, *, min_count: int = 20, top: int | None = None
) -> list[Learned]:
    """Return the tokens by the loss they lost, the most first; of equals the lower id first.

    δ_v = mean over positions whose target is v of (ℓ before - ℓ after), for v of at least ``min_count`` positions (R9).

    Args:
        ids: (positions,) targets.
        before: (positions,) their losses before the stage, in nats.
        after: (positions,) their losses after it.
        min_count: least occurrences.
        top: how many are returned; None: all.
    """
    targets = np.asarray(ids, dtype=np.int64)
    if not len(targets):
        return []
    lost = np.asarray(before, dtype=np.float64) - np.asarray(after, dtype=np.float64)
    tokens, places, counts = np.unique(targets, return_inverse=True, return_counts=True)
    deltas = np.bincount(places, weights=lost) / counts
    kept = np.flatnonzero(counts >= min_count)
    order = kept[np.lexsort((tokens[kept], -deltas[kept]))]
    return [Learned(int(tokens[at]), float(deltas[at]), int(counts[at])) for at in order[:top]]


def tokens(config: TokensStudyConfig, invocation: Invocation) -> None:
    """List the tokens with the largest δ_v of both stages; write ``tokens.json``, ``tokens.csv``, ``plots/tokens.png``.

    Raises:
        UserError: for evaluations without losses of tokens or of other rows, or a token that no stage has often enough.
    """
    stages = {"early": config.early, "late": config.late}
    for name, folders in stages.items():
        if len(folders) != 2:
            raise UserError(f"{name} names {len(folders)} evaluations; give two, before and after the stage")
    found = {name: [read_evaluation(folder) for folder in folders] for name, folders in stages.items()}
    check_same_rows([*found["early"], *found["late"]], tokens=True)
    lists: dict[str, list[Learned]] = {}
    for name, (first, second) in found.items():
        (ids, before), (_, after) = first.tokens(), second.tokens()
        lists[name] = learned_tokens(ids, before, after, min_count=config.min_count, top=config.top)
    if not any(lists.values()):
        raise UserError(
            f"min_count={config.min_count}: no token is the target so often; lower it, or evaluate more rows"
        )
    tokenizer: Any = load_tokenizer(
        LoadedModelConfig(name=config.tokenizer or found["early"][0].results["model"]["name"])
    )
    with Run.open(invocation) as run:
        rows = found["early"][0].results["rows"]
        run.add_fingerprint("data", "rows", rows["sha256"], tokens=rows["tokens_sha256"])
        _report(config, lists, lambda token: repr(tokenizer.decode([token])), run)


def _report(config: TokensStudyConfig, lists: dict[str, list[Learned]], write: Callable[[int], str], run: Run) -> None:
    table = Table("", header_style="bold", title="loss lost by token, nats", title_style="bold")
    for name in lists:
        for column in (name, "δ", "times"):
            table.add_column(column, justify="left" if column == name else "right")
    for place in range(max(map(len, lists.values()))):
        table.add_row(str(place + 1), *(cell for entries in lists.values() for cell in _cells(entries, place, write)))
    medians = {name: median(entry.count for entry in entries) for name, entries in lists.items() if entries}
    facts = {
        "min_count": config.min_count,
        "top": config.top,
        "stages": {
            name: [{**asdict(entry), "token": write(entry.id)} for entry in entries] for name, entries in lists.items()
        },
        "median_count": medians,
    }
    write_json(run.dir / "tokens.json", facts)
    write_text(run.dir / "tokens.csv", _csv(lists, write))
    drawn = {name: [(write(entry.id), entry.delta) for entry in entries] for name, entries in lists.items() if entries}
    bars(drawn, run.dir / "plots" / "tokens.png", measured="mean loss lost, nats")
    run.set_metrics({"median_count": medians})
    console = result_console()
    console.print(table)
    for name, value in medians.items():
        console.print(f"{name}: the listed tokens are targets {value:g} times in the median")
    console.print("published: early common, general words, late rare words of the corpus")
    say(f"record, tokens.json, tokens.csv and plot: {run.dir}")


def _cells(entries: Sequence[Learned], place: int, write: Callable[[int], str]) -> tuple[str, str, str]:
    if place >= len(entries):
        return "", "", ""
    entry = entries[place]
    return write(entry.id), f"{entry.delta:+.4f}", str(entry.count)


def _csv(lists: dict[str, list[Learned]], write: Callable[[int], str]) -> str:
    rows = [
        (name, place, entry.id, write(entry.id), repr(entry.delta), entry.count)
        for name, entries in lists.items()
        for place, entry in enumerate(entries, start=1)
    ]
    return csv_text(["stage", "rank", "id", "token", "delta", "count"], rows)
