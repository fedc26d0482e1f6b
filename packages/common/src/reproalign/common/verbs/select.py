"""The verb ``select``: of the scored responses to each prompt the best, or the best and the worst as a pair."""

from __future__ import annotations

from rich.console import Console

from reproalign.common.errors import UserError, choose
from reproalign.common.files import sha256_json
from reproalign.common.generation.samples import SCORED, SELECTED, find, read_sampled, write_rows
from reproalign.common.generation.select import best_row, pair_row
from reproalign.common.invocation import Invocation
from reproalign.common.records import Run
from reproalign.common.verbs.config import SelectConfig

KEEP = ("best", "pairs")


def select(config: SelectConfig, invocation: Invocation) -> None:
    """Write ``selected.jsonl`` from the first n responses to each prompt.

    keep=best: id, prompt, messages (prompt and best response), reward, index. keep=pairs: TRL's preference format, of
    best and worst, with their scores and ``p_chosen`` (``conf`` of MORE's release).
    """
    keep = choose("keep", config.keep, KEEP)
    path = find(config.scored, SCORED, "scored")
    rows = read_sampled(path, scored=True)
    count = len(rows[0].responses)
    n = count if config.n is None else config.n
    if not 1 <= n <= count:
        raise UserError(f"n={n} must be between 1 and {count}, the number of responses to a prompt in {path}")
    if keep == "pairs" and n < 2:
        raise UserError(f"keep=pairs needs two responses to a prompt, and of {path} n={n} takes part; sample more")
    made = [best_row(row, n) if keep == "best" else pair_row(row, n) for row in rows]
    selected = [row for row in made if row is not None]
    aside = len(made) - len(selected)
    if not selected:
        why = "has an empty response for its best" if keep == "best" else "has equal scores for best and worst"
        raise UserError(f"{path}: nothing to select, since every prompt {why}; sample and score again")
    with Run.open(invocation) as run:
        run.add_fingerprint("data", "scored", sha256_json([vars(row) for row in rows]), path=config.scored)
        write_rows(run.dir / SELECTED, selected)
        run.add_fingerprint("data", "selected", sha256_json(selected), made=True, rows=len(selected))
        name = "reward" if keep == "best" else "score_chosen"
        sampled = [score for row in rows for score in (row.scores or [])[:n]]
        metrics = {
            "selected": len(selected),
            "set_aside": aside,
            "mean_reward": sum(row[name] for row in selected) / len(selected),
            "mean_reward_of_all": sum(sampled) / len(sampled),
        }
        run.set_metrics(metrics)
        Console().print(
            f"{len(selected)} of {len(made)} prompts (mean reward {metrics['mean_reward']:.4f}, of all responses "
            f"{metrics['mean_reward_of_all']:.4f}): {run.dir / SELECTED}",
            highlight=False,
        )
