"""The options of ``toy train``."""

from __future__ import annotations

from dataclasses import dataclass

import toy.data  # noqa: F401 - registers the data set
from reproalign.common.config.model import ReferenceConfig
from reproalign.common.config.run import RunConfig
from reproalign.common.config.text import PairTextConfig
from reproalign.common.options import one_of, section
from toy.objective import Exponential


@dataclass
class TrainConfig(RunConfig):
    """``toy train``: a policy on preference pairs."""

    text: PairTextConfig = section(PairTextConfig)
    loss: Exponential = one_of("toy.objective:OBJECTIVES", "exponential", help="the objective")
    reference: ReferenceConfig = section(ReferenceConfig)
