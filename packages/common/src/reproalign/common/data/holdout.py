"""Which prompts are held out: one rule for every paper."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from reproalign.common.errors import UserError

Record = TypeVar("Record")


def prompt_key(seed: int, *prompt: Any) -> int:
    """Return 64 bits of the SHA-256 of the seed and a prompt, which no order of rows changes.

    Args:
        seed: of the run.
        *prompt: what equal prompts have in common: text, messages, or parts of these.
    """
    text = json.dumps([seed, *prompt])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def held_out(keys: NDArray[np.uint64], fraction: float) -> NDArray[np.bool_]:
    """Say which rows are held out: those of the ``ceil(fraction * distinct)`` prompts with the smallest keys.

    Args:
        keys: of the rows' prompts, from :func:`prompt_key`.
        fraction: of the distinct prompts, in (0, 1].
    """
    distinct = np.unique(keys)
    share = Fraction(str(fraction))  # as it was typed: the float 0.07 times 100 is a little above 7
    mask: NDArray[np.bool_] = keys <= distinct[math.ceil(share * len(distinct)) - 1]
    return mask


def hold_out(
    records: Sequence[Record],
    fraction: float,
    seed: int,
    prompt_of: Callable[[Record], Any],
    *,
    key: str = "data.eval_fraction",
) -> tuple[list[Record], list[Record]]:
    """Part records into those to train on and those held out, prompt by prompt; both keep their order.

    Args:
        records: of one data set.
        fraction: of the distinct prompts, rounded up, at least 0 and below 1.
        seed: of the run.
        prompt_of: what equal prompts have in common.
        key: the option that asked for it.

    Raises:
        UserError: for a share that leaves nothing to train on.
    """
    if not fraction or not records:
        return list(records), []
    keys = np.array([prompt_key(seed, prompt_of(record)) for record in records], dtype=np.uint64)
    mask = held_out(keys, fraction)
    if mask.all():
        raise UserError(f"{key}={fraction} of {len(np.unique(keys))} prompts leaves none to train on")
    kept, held = (
        [record for record, out in zip(records, mask, strict=True) if out == wanted] for wanted in (False, True)
    )
    return kept, held
