"""In a test run every function of the packages is held to the types and the shapes that it says (conftest.py)."""

from __future__ import annotations

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import TypeCheckError

from reproalign.common.config.data import SetConfig
from reproalign.common.errors import did_you_mean
from reproalign.common.training.examples import kl_estimate


def test_functions_and_dataclasses_are_held_to_their_types():
    with pytest.raises(BeartypeCallHintViolation):
        did_you_mean(3, ["a"])
    with pytest.raises(BeartypeCallHintViolation):
        SetConfig(path=3)


def test_arrays_are_held_to_their_shapes():
    assert kl_estimate(torch.tensor([1.0, 3.0])) == 2
    with pytest.raises(TypeCheckError):
        kl_estimate(torch.zeros(2, 3))
