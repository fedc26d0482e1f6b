r"""From a quality margin to the target probability that the chosen response is preferred.

    q = sigma(gamma · m),   m = s_w - s_l          (Bradley-Terry)

gamma = null stands for infinity: q = 1, plain DPO or a plain Bradley-Terry reward model.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reproalign.common.errors import UserError
from reproalign.common.evaluation.calibration import sigmoid
from reproalign.common.records.handed_on import intact
from reproalign.mmpo.config import TargetConfig

Floats = NDArray[np.float64]


def check_gamma(gamma: float | None) -> float | None:
    """Return gamma, or None for hard labels; 0 means hard labels too, as in the release, which is worth a warning."""
    if gamma == 0:
        warnings.warn(
            "target.gamma=0 means hard labels (q = 1), as in the released code, not q = 1/2", UserWarning, stacklevel=2
        )
        return None
    return gamma


def transform_margins(score_chosen: Floats, score_rejected: Floats, target: TargetConfig) -> Floats:
    """Return the margins m that enter the sigmoid.

    ``raw``: (s_w - s_l) / scale, as published. Extensions: ``log-ratio``: log((1 + s_w) / (1 + s_l)) / scale, for
    counts such as votes; ``rank``: the mid-rank of |s_w - s_l| among all pairs, in (0, 1], with its sign, / scale.

    Raises:
        UserError: for scores below 0 with ``log-ratio``.
    """
    margins = score_chosen - score_rejected
    if target.margin_transform == "log-ratio":
        if min(score_chosen.min(), score_rejected.min()) < 0:
            raise UserError("target.margin_transform=log-ratio needs scores of at least 0; use raw or rank")
        margins = np.log1p(score_chosen) - np.log1p(score_rejected)
    elif target.margin_transform == "rank":
        sizes = np.sort(np.abs(margins))
        low = np.searchsorted(sizes, np.abs(margins), side="left")
        high = np.searchsorted(sizes, np.abs(margins), side="right")
        margins = np.sign(margins) * (low + 1 + high) / 2 / len(margins)
    return margins / target.margin_scale


def target_probabilities(margins: Floats, gamma: float | None) -> Floats:
    """Return q = sigma(gamma · m) (R1) for every margin; 1 for hard labels."""
    return np.ones_like(margins) if gamma is None else sigmoid(gamma * margins)


def read_soft_labels(path: str) -> dict[str, float]:
    """Read a JSON list of ``{"prompt_id": str, "p_chosen": float}``; of several for one prompt the last counts.

    Raises:
        UserError: naming the file and the entry that is wrong.
    """
    try:
        entries = json.loads(intact(Path(path)).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"target.soft_labels={path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"target.soft_labels={path}: not valid JSON ({error})") from error
    if not isinstance(entries, list):
        raise UserError(f"target.soft_labels={path}: a list of {{prompt_id, p_chosen}} is needed")
    labels: dict[str, float] = {}
    for number, entry in enumerate(entries, start=1):
        p = entry.get("p_chosen") if isinstance(entry, dict) else None
        if p is None or "prompt_id" not in entry or isinstance(p, bool) or not isinstance(p, int | float):
            raise UserError(f"target.soft_labels={path} entry {number}: prompt_id and a number p_chosen are needed")
        if not 0 <= p <= 1:
            raise UserError(f"target.soft_labels={path} entry {number}: p_chosen={p} is not in [0, 1]")
        labels[str(entry["prompt_id"])] = float(p)
    return labels
