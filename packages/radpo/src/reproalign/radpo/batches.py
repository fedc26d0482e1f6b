"""From rows to batches: the order of a run's epochs, what is dropped, and mismatched pairs within a batch."""

from __future__ import annotations

import random
from itertools import count

from reproalign.common.errors import UserError, counted
from reproalign.radpo.rows import Row, RowRules


def lay_out(rows: list[Row], rules: RowRules, limit: int | None = None) -> tuple[list[list[Row]], int]:
    """Put rows into batches, in the order in which ``rules.epochs`` epochs go through them.

    Each epoch shuffles the order of the one before with ``Random(seed + epoch)``. A limit counts rows of an epoch, from
    the front of ``rows``; with ``across_epochs`` those of the whole run, in its order and rounded up to whole batches,
    as the release's loaders count (ERRATA Q21).

    Args:
        rows: of one epoch.
        rules: ``seed``, ``epochs``, ``batch_size``, ``processes``, ``accumulation``, ``repeats``, ``incomplete`` and
            ``variant.across_epochs``.
        limit: rows at most; null: all.

    Returns:
        The batches, and how many rows the incomplete ones had that were dropped.

    Raises:
        UserError: if no batch is left.
    """
    across = rules.variant.across_epochs
    order = list(rows if across else rows[:limit])
    together = rules.batch_size * (1 if across else rules.processes)
    if len(order) < (together if rules.incomplete == "drop" else 1):
        raise UserError(
            f"{len(order)} rows fill no batch of {rules.batch_size} for each of "
            f"{counted(together // rules.batch_size, 'process')}; give more rows or pairs, a smaller batch_size, "
            "or incomplete=keep"
        )
    batches: list[list[Row]] = []
    dropped = 0
    for epoch in count() if rules.epochs is None else range(rules.epochs):
        random.Random(rules.seed + epoch).shuffle(order)
        over = len(order) % together if rules.incomplete == "drop" else 0
        whole = order[: len(order) - over]
        batches += [whole[start : start + rules.batch_size] for start in range(0, len(whole), rules.batch_size)]
        dropped += over
        if across and limit is not None and len(batches) * rules.batch_size >= limit:
            batches = batches[: -(-limit // rules.batch_size)]
            break
    return _whole_steps(batches, rules, dropped) if across else (batches, dropped)


def _whole_steps(batches: list[list[Row]], rules: RowRules, dropped: int) -> tuple[list[list[Row]], int]:
    """Leave out the batches at the end of a run that fill no optimiser step, and repeat each for PPO's epochs."""
    batches = [batch for batch in batches for _ in range(rules.repeats)]
    over = len(batches) % (rules.processes * rules.accumulation)
    whole = batches[: len(batches) - over]
    if not whole:
        raise UserError(
            f"{sum(map(len, batches))} rows fill no optimiser step of {counted(rules.processes, 'process')} with "
            f"{counted(rules.accumulation, 'batch')} of {rules.batch_size} each; give more rows or pairs, or "
            "smaller batches"
        )
    return whole, dropped + sum(map(len, batches[len(whole) :]))


def mismatch(batches: list[list[Row]]) -> list[list[Row]]:
    """Give each row of a batch the next row's completion as ``KL``, the last one the first's: KTO's estimate of the KL.

    Args:
        batches: that :func:`check_mismatch` lets pass.
    """
    return [
        [{**row, "KL": following["completion"]} for row, following in zip(batch, batch[1:] + batch[:1], strict=True)]
        for batch in batches
    ]


def check_mismatch(batches: list[list[Row]]) -> None:
    """Refuse batches without mismatched pairs for KTO.

    Raises:
        UserError: for a batch of one, which has no other completion, or rows of one class only.
    """
    if any(len(batch) == 1 for batch in batches):
        raise UserError(
            "KTO's mismatched pairs need batches of at least 2 rows; set a larger batch_size, or incomplete=drop"
        )
    if len({row["label"] for batch in batches for row in batch}) < 2:
        raise UserError("KTO needs desirable and undesirable rows, these are of one class; raise frac_unique_*")
