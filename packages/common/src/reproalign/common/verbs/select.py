"""The verb ``select``: of the scored responses to each prompt the best, or the best and the worst as a pair."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from reproalign.common.console import say
from reproalign.common.errors import UserError
from reproalign.common.files import sha256_json
from reproalign.common.generation.filters import is_discarded
from reproalign.common.generation.samples import SCORED, SELECTED, Sampled, find, read_sampled, write_rows
from reproalign.common.generation.select import SelectionRules, select_row
from reproalign.common.invocation import Invocation
from reproalign.common.records import Run
from reproalign.common.verbs.config import SelectConfig


def select(config: SelectConfig, invocation: Invocation) -> None:
    """Write ``selected.jsonl`` from the first n responses to each prompt.

    keep=best: id, prompt, messages (prompt and best response), reward, index. keep=pairs: TRL's preference format, of
    best and worst, with their scores and ``p_chosen`` (``conf`` of MORE's release). keep=all: id, prompt, responses,
    scores, discarded ones with what they count.
    """
    rules = selection_rules(config)
    path = find(config.scored, SCORED, "scored")
    rows = read_sampled(path, scored=True)
    count = len(rows[0].responses)
    n = count if rules.n is None else rules.n
    if n > count:
        raise UserError(f"n={n} must be at most {count}, the number of responses to a prompt in {path}")
    if rules.keep == "pairs" and n < 2:
        raise UserError(f"keep=pairs needs two responses to a prompt, and of {path} n={n} takes part; sample more")
    selected = [made for row in rows if (made := select_row(row, rules)) is not None]
    if not selected:
        raise UserError(f"{path}: nothing to select, since every prompt {_why(rules)}; sample and score again")
    with Run.open(invocation) as run:
        run.add_fingerprint("data", "scored", sha256_json([vars(row) for row in rows]), path=config.scored)
        write_rows(run.dir / SELECTED, selected)
        run.add_fingerprint("data", "selected", sha256_json(selected), made=True, rows=len(selected))
        metrics = selection_metrics(rows, selected, rules)
        run.set_metrics(metrics)
        say(
            f"{len(selected)} of {len(rows)} prompts (mean reward {metrics['mean_reward']:.4f}, of all responses "
            f"{metrics['mean_reward_of_all']:.4f}, {metrics['discard_rate']:.1%} of them discarded): "
            f"{run.dir / SELECTED}"
        )


def selection_rules(config: SelectConfig) -> SelectionRules:
    """Return what the options say is kept.

    Raises:
        UserError: for options that nothing can be selected by.
    """
    return SelectionRules(config.n, config.keep, config.discard, config.discard_reward, config.min_reward)


def selection_metrics(
    rows: Sequence[Sampled], selected: Sequence[dict[str, Any]], rules: SelectionRules
) -> dict[str, int | float]:
    """Return counts and mean rewards of the first n responses.

    ``mean_reward``: of what is selected; ``mean_reward_of_all``: raw, discarded responses included;
    ``mean_reward_counted``: of all that take part, as they count.
    """
    responses = [text for row in rows for text in row.responses[: rules.n]]
    discarded = sum(is_discarded(text, rules.discard) for text in responses)
    name = {"best": "reward", "pairs": "score_chosen", "all": "scores"}[rules.keep]
    return {
        "selected": len(selected),
        "set_aside": len(rows) - len(selected),
        "discarded": discarded,
        "discard_rate": discarded / len(responses),
        "mean_reward": fmean(max(row[name]) if rules.keep == "all" else row[name] for row in selected),
        "mean_reward_of_all": fmean(score for row in rows for score in (row.scores or [])[: rules.n]),
        "mean_reward_counted": fmean(reward for row in rows for reward in rules.counted(row) if reward is not None),
    }


def _why(rules: SelectionRules) -> str:
    if rules.discard != "none" or rules.min_reward is not None:
        return "has none but discarded responses, or a best one below min_reward"
    return "has an empty response for its best" if rules.keep == "best" else "has equal scores for best and worst"
