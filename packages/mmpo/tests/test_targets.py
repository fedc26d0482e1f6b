"""Targets against the paper's table and their definitions."""

from __future__ import annotations

import json

import numpy as np
import pytest
from datasets import Dataset

from reproalign.common.errors import UserError
from reproalign.common.evaluation.calibration import sigmoid
from reproalign.mmpo.config import TargetConfig
from reproalign.mmpo.data import build_targets
from reproalign.mmpo.target import check_gamma, target_probabilities, transform_margins


def pairs(*scores: tuple[float, float]) -> Dataset:
    rows = [
        {
            "prompt": f"p{n}",
            "chosen": f"good {n}",
            "rejected": f"bad {n}",
            "prompt_id": f"id{n}",
            "score_chosen": chosen,
            "score_rejected": rejected,
        }
        for n, (chosen, rejected) in enumerate(scores)
    ]
    return Dataset.from_list(rows)


@pytest.mark.parametrize(
    ("gamma", "row"),
    [
        (0.3, [0.500, 0.537, 0.574, 0.646, 0.711, 0.818, 0.937]),
        (0.5, [0.500, 0.562, 0.622, 0.731, 0.818, 0.924, 0.989]),
        (1.1, [0.500, 0.634, 0.750, 0.900, 0.964, 0.996, 1.000]),
        (2.2, [0.500, 0.750, 0.900, 0.988, 0.999, 1.000, 1.000]),
        (None, [1.0] * 7),
    ],
)
def test_targets_of_margins(gamma, row):
    """R1, at worked margins and γ."""
    margins = np.array([0, 0.5, 1, 2, 3, 5, 9], dtype=float)
    np.testing.assert_allclose(target_probabilities(margins, gamma), row, atol=5e-4)


def test_the_sigmoid_does_not_overflow():
    assert sigmoid(np.array([-1e4, 1e4])).tolist() == [0.0, 1.0]


def test_gamma_zero_means_hard_labels():
    with pytest.warns(UserWarning, match="hard labels"):
        assert check_gamma(0.0) is None


def test_transforms():
    chosen, rejected = np.array([10.0, 3.0, 5.0]), np.array([0.0, 3.0, 7.0])
    raw = transform_margins(chosen, rejected, TargetConfig(margin_scale=2.0))
    assert raw.tolist() == [5.0, 0.0, -1.0]
    ratio = transform_margins(chosen, rejected, TargetConfig(margin_transform="log-ratio"))
    np.testing.assert_allclose(ratio, np.log([11, 1, 6 / 8]))
    rank = transform_margins(chosen, rejected, TargetConfig(margin_transform="rank"))
    np.testing.assert_allclose(rank, [1.0, 0.0, -2 / 3])
    with pytest.raises(UserError, match="needs scores of at least 0"):
        transform_margins(-chosen, rejected, TargetConfig(margin_transform="log-ratio"))


def test_soft_labels_replace_reflect_and_swap(tmp_path):
    file = tmp_path / "labels.json"
    file.write_text(json.dumps([{"prompt_id": "id0", "p_chosen": 0.9}, {"prompt_id": "id1", "p_chosen": 0.2}]))
    data = pairs((9.0, 1.0), (8.0, 2.0), (7.0, 3.0))
    rows = build_targets(data, TargetConfig(gamma=0.5, soft_labels=str(file)))
    np.testing.assert_allclose(rows["p_chosen"][:], [0.9, 0.8, 1 / (1 + np.exp(-2.0))])
    assert rows["chosen"][:] == ["good 0", "bad 1", "good 2"]
    kept = build_targets(data, TargetConfig(gamma=0.5, soft_labels=str(file), reflect_soft_labels=False))
    assert kept["p_chosen"][1] == 0.2
    assert kept["chosen"][1] == "good 1"


def test_filter_drops_margins_up_to_the_threshold():
    rows = build_targets(pairs((9.0, 1.0), (5.0, 4.0), (5.0, 3.0)), TargetConfig(gamma=None, filter_threshold=1.0))
    assert rows["prompt_id"][:] == ["id0", "id2"]
