"""The release's file of ratios, ``mask_alphas.bin``: raw scalars, and the ratio that each stands for.

α_g = α K h(s_g) / Σ_j h(s_j) with h(s) = sigmoid(s) + ε is the ratio of the raw scalar s_g.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from reproalign.common.errors import UserError

RELEASED_NAME = "mask_alphas.bin"
RELEASED_EPSILON = 1e-6  # where the file has none
Scalar = Float[Tensor, ""]


@dataclass(frozen=True)
class ReleasedAlphas:
    """What ``mask_alphas.bin`` holds.

    Attributes:
        modules: raw scalar of each masked linear layer.
        normaliser: raw scalar of each group, over which h is summed.
        init: α.
        epsilon: ε.
    """

    modules: Mapping[str, Scalar]
    normaliser: Mapping[Any, Scalar]
    init: float
    epsilon: float

    @classmethod
    def of(cls, content: Mapping[str, Any], label: str) -> ReleasedAlphas:
        """Take the file's content.

        Raises:
            UserError: naming what is missing; the release fails there too, but for ε.
        """
        for key in ("mask_alphas", "mask_bkp_alphas", "init_val"):
            if content.get(key) is None:
                raise UserError(f"{label}: '{key}' is missing; the file is not one of the release's {RELEASED_NAME}")
        epsilon = content.get("epsilon")
        return cls(
            {name: raw.detach() for name, raw in content["mask_alphas"].items()},
            {group: raw.detach() for group, raw in content["mask_bkp_alphas"].items()},
            float(content["init_val"]),
            RELEASED_EPSILON if epsilon is None else float(epsilon),
        )

    def ratio(self, raw: Scalar) -> Scalar:
        """Return α h(s) / Σ_g h(s_g) · K in the dtype of the scalars; NaN if there is nothing to sum over."""
        total = sum(
            (torch.sigmoid(scalar) + self.epsilon for scalar in self.normaliser.values()), torch.zeros_like(raw)
        )
        return self.init * (torch.sigmoid(raw) + self.epsilon) / total * len(self.normaliser)


def read_alphas(path: Path) -> ReleasedAlphas:
    """Read the release's file, executing nothing in it.

    Raises:
        UserError: if it is not one.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the loader raises all kinds of errors for files that are none
        raise UserError(f"{path}: not loadable with torch.load(weights_only=True)") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no dictionary; the file is not one of the release's {RELEASED_NAME}")
    return ReleasedAlphas.of(content, str(path))
