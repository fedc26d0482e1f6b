"""The paper's series, as points."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from reproalign.ama.points import Point, parse_points


@cache
def published_points() -> tuple[Point, ...]:
    """Return every series of the paper's figures and the rows of its Table 1.

    Rewards and task scores of figures are digitised from vector graphics (``source`` D), those of Table 1 are printed
    (P). ``reward`` is the reward model's mean, or where ``measure`` says so a win rate as a fraction, whose standard
    error is the binomial one over 805 prompts. Reading comprehension and ``drop`` are F1, ``common_sense`` accuracy,
    all in per cent; ``bleu`` is WMT14 French to English. ``alpha`` multiplies the weights before alignment.
    """
    text = files("reproalign.ama.study").joinpath("published.csv").read_text(encoding="utf-8")
    return tuple(parse_points(text, "published.csv"))
