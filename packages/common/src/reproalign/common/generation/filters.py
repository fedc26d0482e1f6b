"""Which part of what was generated is the response, and which responses are no candidates, by LMFlow's rules or none.

LMFlow's are those of RAFT's release (``raft_aligner.py``, ``_clean_text`` and ``_discard_sample``), made for dialogues
whose turns open with ``###Human``.
"""

from __future__ import annotations

_NEXT_TURN = "###Human"
_SHORTEST = 4  # characters of a response that is kept


def clean_lmflow(text: str) -> str | None:
    """Return the response in a generated text by LMFlow's rule; None if the text is nothing but openings of turns.

    The text is split at every ``###Human``; of the pieces that are not empty the first one counts. White space around
    it goes, then every ``#`` at both ends, then ``<s>`` and ``</s>`` anywhere. An empty text stays empty. The release
    raises IndexError where None is returned.
    """
    if not text:
        return ""
    pieces = [piece for piece in text.split(_NEXT_TURN) if piece]
    return pieces[0].strip().strip("#").replace("<s>", "").replace("</s>", "") if pieces else None


def is_discarded(text: str, rule: str) -> bool:
    """Say whether a response is no candidate for selection.

    Args:
        text: the response, cleaned.
        rule: ``none``: every response is one; ``lmflow``: not with a ``#`` in it, nor with fewer than 4 characters.
    """
    return rule == "lmflow" and ("#" in text or len(text) < _SHORTEST)
