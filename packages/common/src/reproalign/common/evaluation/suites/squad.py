"""SQuAD 2.0's exact match and F1, and the best that a threshold on "no answer" could have reached.

Definition: Rajpurkar, Jia and Liang (2018), arXiv 1806.03822, and the official evaluation of the data set.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Return ``text`` in lower case without punctuation, articles and superfluous blanks."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def scores(prediction: str, references: Sequence[str]) -> tuple[float, float]:
    """Return exact match and F1, in [0, 1], of an answer: the best over the references.

    F1 = 2 P R / (P + R) with precision P and recall R over the words of :func:`normalise`, as bags. No references, or
    none with a word in it, mean that the question has no answer: then both are 1 for an empty answer and 0 otherwise.
    """
    golds = [text for text in references if normalise(text)] or [""]
    return max(float(normalise(gold) == normalise(prediction)) for gold in golds), max(
        _f1(normalise(prediction).split(), normalise(gold).split()) for gold in golds
    )


def _f1(prediction: list[str], gold: list[str]) -> float:
    if not prediction or not gold:
        return float(prediction == gold)
    common = (Counter(prediction) & Counter(gold)).total()
    return 2 * common / (len(prediction) + len(gold))


def best_with_threshold(items: Sequence[tuple[float, float, bool]]) -> float:
    """Return the best mean score that abstaining above one threshold of the no-answer probability could have given.

    As the official evaluation does, questions are answered one after the other in the order of that probability, and
    the best sum on the way is taken; it begins with abstaining always.

    Args:
        items: of each question, what answering it adds to the sum (see :func:`gain`), the probability that it has no
            answer, and whether it has one.

    Returns:
        In per cent.
    """
    total = best = float(sum(not has_answer for _, _, has_answer in items))
    for added, _, _ in sorted(items, key=lambda item: item[1]):
        total += added
        best = max(best, total)
    return 100 * best / len(items)


def gain(score: float, prediction: str, has_answer: bool) -> float:
    """Return what answering adds to abstaining: the score, or where there is no answer -1 for any text at all."""
    return score if has_answer else -float(bool(prediction))
