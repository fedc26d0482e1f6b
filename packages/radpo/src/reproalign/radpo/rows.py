"""From examples to rows: which responses of a prompt are trained on, and in which order.

A row has ``key`` (of its prompt), ``prompt`` (messages), responses as text under the names of its kind's sides,
``truncation`` (which end of the prompt survives) and, if unpaired, ``label``.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from reproalign.common.errors import UserError
from reproalign.radpo.examples import Example, Examples
from reproalign.radpo.rules import PAPER, RadpoRules

KINDS = {  # sides of a row; those in one tuple keep the same part of a long prompt
    "completions": (("completion",),),
    "controlled": (("completion",),),
    "paired": (("chosen", "rejected"),),
    "unpaired": (("completion",),),
    "mismatched": (("completion",), ("KL",)),
}

Row = dict[str, Any]


@dataclass(frozen=True)
class RowRules:
    """How examples become rows."""

    kind: str = (
        "paired"  # of KINDS; controlled: behind control tokens; mismatched: unpaired, with other prompts' responses
    )
    variant: RadpoRules = PAPER
    seed: int = 1  # of the order
    epochs: int | None = 1  # whose orders follow one another in the rows; released: null: as many as a limit takes
    batch_size: int = 4  # rows per process and step; mismatched pairs stay within a batch
    processes: int = 1  # that take batches in turns: rows that do not fill a batch of each are incomplete
    accumulation: int = 1  # batches of a process per optimiser step; released: those of the last short step are dropped
    repeats: int = 1  # released PPO: how often in a row a batch is stepped on
    clean_up_spaces: bool = True  # released: decode texts as transformers 4.44 does by default (ERRATA Q20)
    incomplete: str = "drop"  # drop (released) | keep an epoch's last batch if it is short (ERRATA Q16)
    selection: str = "all"  # unpaired: all | one response a prompt, alternating | scores: likewise, by scores
    frac_unique_desirable: float = 1.0  # share of the chosen responses that is kept, first come
    frac_unique_undesirable: float = 1.0
    good: str = "<|good|>"  # csft: before a chosen response
    bad: str = "<|bad|>"


def build_rows(examples: Examples, rules: RowRules) -> list[Row]:
    """Return the rows of ``rules.kind``.

    Raises:
        UserError: if there is none.
    """
    rows = _of_kind(examples, rules)
    if not rows:
        raise UserError(f"no prompt has a pair, which kind={rules.kind} needs; train with sft or on another data set")
    return rows


def sft_rows(examples: Examples, seed: int, target: str = "sft_index") -> list[Row]:
    """Return one row a prompt, on the generation whose index the field ``target`` holds."""
    return [
        _row(example, completion=example.generations[getattr(example, target)])
        for example in shuffle_prompts(examples, seed)
    ]


def csft_rows(examples: Examples, seed: int, good: str = "<|good|>", bad: str = "<|bad|>") -> list[Row]:
    """Return two rows a pair: the control token ``good`` and the chosen response, ``bad`` and the rejected one."""
    return [
        _row(example, completion=token + example.generations[index])
        for example in shuffle_prompts(examples, seed)
        for pair in example.pairs
        for token, index in zip((good, bad), pair, strict=True)
    ]


def paired_rows(examples: Examples, seed: int) -> list[Row]:
    """Return one row a pair: ``chosen`` and ``rejected``."""
    return [
        _row(example, chosen=example.generations[i], rejected=example.generations[j])
        for example in shuffle_prompts(examples, seed)
        for i, j in example.pairs
    ]


def unpaired_rows(
    examples: Examples,
    seed: int,
    *,
    selection: str = "all",
    frac_unique_desirable: float = 1.0,
    frac_unique_undesirable: float = 1.0,
) -> list[Row]:
    """Return rows of single responses with a ``label``: whether the response is desirable.

    Args:
        examples: by prompt.
        seed: of the prompts' order.
        selection: ``all``: the chosen and the rejected response of each pair, of each class the first
            ``frac_unique_* x pairs``; ``one``: one response a prompt, in turns the chosen and the rejected one of its
            first pair; ``scores``: in turns the best and the worst generation by score.
        frac_unique_desirable: share of the chosen responses, of ``all``.
        frac_unique_undesirable: share of the rejected ones.

    Raises:
        UserError: for ``scores`` where there are none.
    """
    shares = {True: frac_unique_desirable, False: frac_unique_undesirable}
    # The release sorts prompts here and nowhere else; which rows shares and turns keep depends on it.
    ordered = shuffle_prompts(dict(sorted(examples.items())), seed)
    if selection != "all":
        ordered = [example for example in ordered if example.pairs]
        extremes = [_by_score(e) if selection == "scores" else e.pairs[0] for e in ordered]
        return [
            _row(example, completion=example.generations[ends[number % 2]], label=number % 2 == 0)
            for number, (example, ends) in enumerate(zip(ordered, extremes, strict=True))
        ]
    allowed = {label: share * sum(len(example.pairs) for example in ordered) for label, share in shares.items()}
    seen = {True: 0, False: 0}
    rows = []
    for example in ordered:
        for pair in example.pairs:
            for label, index in zip((True, False), pair, strict=True):
                if seen[label] < allowed[label]:
                    seen[label] += 1
                    rows.append(_row(example, completion=example.generations[index], label=label))
    return rows


def shuffle_prompts(examples: Examples, seed: int) -> list[Example]:
    """Return the examples in the order of their prompts after ``Random(seed)``, so that sources are mixed."""
    keys = list(examples)
    random.Random(seed).shuffle(keys)
    return [examples[key] for key in keys]


def released_length(examples: Examples, rules: RowRules) -> float:
    """Return what the release takes for the number of training steps: examples of one epoch of the whole split."""
    if rules.kind == "completions":
        return float(len(examples))
    pairs = sum(len(example.pairs) for example in examples.values())
    if rules.kind == "paired":
        return float(pairs)
    shares = (1.0, 1.0) if rules.kind == "controlled" else (rules.frac_unique_desirable, rules.frac_unique_undesirable)
    return sum(pairs * share for share in shares)


def _of_kind(examples: Examples, rules: RowRules) -> list[Row]:
    if rules.kind == "completions":
        return sft_rows(examples, rules.seed, rules.variant.sft_target)
    if rules.kind == "controlled":
        return csft_rows(examples, rules.seed, rules.good, rules.bad)
    if rules.kind == "paired":
        return paired_rows(examples, rules.seed)
    return unpaired_rows(
        examples,
        rules.seed,
        selection=rules.selection,
        frac_unique_desirable=rules.frac_unique_desirable,
        frac_unique_undesirable=rules.frac_unique_undesirable,
    )


def _row(example: Example, *, label: bool | None = None, **sides: str) -> Row:
    row: Row = {"key": example.key, "prompt": example.prompt, "truncation": example.truncation_mode}
    return row | sides | ({} if label is None else {"label": label})


def _by_score(example: Example) -> tuple[int, int]:
    """Return the indices of the best and the worst generation; the pairs tell whether higher scores are better."""
    scores = example.scores
    if not scores:
        raise UserError(
            f"selection=scores needs a score of each response, which '{example.name}' lacks; set selection=one"
        )
    i, j = example.pairs[0]
    lowest, highest = scores.index(min(scores)), scores.index(max(scores))
    return (highest, lowest) if scores[i] >= scores[j] else (lowest, highest)
