"""Targets and pair rules against the paper's table, brute force and their definitions."""

from __future__ import annotations

import json

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from reproalign.common.errors import UserError
from reproalign.mmpo.config import PairRulesConfig, TargetConfig
from reproalign.mmpo.data import (
    apply_pair_rules,
    build_targets,
    cap_per_prompt,
    proportional_quotas,
    sample_by_margin,
    uniform_quotas,
)
from reproalign.mmpo.decontaminate import filter_strings, keep_mask
from reproalign.mmpo.target import check_gamma, sigmoid, target_probabilities, transform_margins

counts = st.lists(st.integers(0, 30), min_size=1, max_size=8).map(np.array)


def pairs(*scores: tuple[float, float], prompts: list[str] | None = None) -> Dataset:
    rows = [
        {
            "prompt": prompts[n] if prompts else f"p{n}",
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
    margins = np.array([0, 0.5, 1, 2, 3, 5, 9], dtype=float)
    np.testing.assert_allclose(target_probabilities(margins, gamma), row, atol=5e-4)


def test_the_sigmoid_does_not_overflow():
    assert sigmoid(np.array([-1e4, 1e4])).tolist() == [0.0, 1.0]


def test_gamma_zero_means_hard_labels_and_negative_is_refused():
    with pytest.warns(UserWarning, match="hard labels"):
        assert check_gamma(0.0) is None
    with pytest.raises(UserError, match="must be positive"):
        check_gamma(-0.5)


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
    data = pairs((9, 1), (8, 2), (7, 3))
    rows = build_targets(data, TargetConfig(gamma=0.5, soft_labels=str(file)))
    np.testing.assert_allclose(rows["p_chosen"][:], [0.9, 0.8, sigmoid(np.array(2.0))])
    assert rows["chosen"][:] == ["good 0", "bad 1", "good 2"]
    kept = build_targets(data, TargetConfig(gamma=0.5, soft_labels=str(file), reflect_soft_labels=False))
    assert kept["p_chosen"][1] == 0.2
    assert kept["chosen"][1] == "good 1"


def test_filter_drops_margins_up_to_the_threshold():
    rows = build_targets(pairs((9, 1), (5, 4), (5, 3)), TargetConfig(filter_threshold=1.0))
    assert rows["prompt_id"][:] == ["id0", "id2"]


@given(counts=counts, size=st.integers(0, 200))
def test_uniform_quotas_fill_all_bins_alike(counts, size):
    quotas = uniform_quotas(counts, min(size, int(counts.sum())))
    assert quotas.sum() == min(size, counts.sum())
    assert (quotas <= counts).all()
    # A bin that could give more gives at most one less than the most any gives.
    unfilled = quotas[quotas < counts]
    assert not len(unfilled) or unfilled.min() >= quotas.max() - 1


@given(counts=counts.filter(lambda c: c.sum() > 0), share=st.floats(0, 1))
def test_proportional_quotas_are_within_one_of_the_exact_share(counts, share):
    size = int(share * counts.sum())
    quotas = proportional_quotas(counts, size)
    assert quotas.sum() == size
    assert (np.abs(quotas - size * counts / counts.sum()) < 1).all()
    assert (quotas <= counts).all()


@given(margins=st.lists(st.integers(0, 10), min_size=1, max_size=60), size=st.integers(1, 60), seed=st.integers(0, 3))
def test_sampling_keeps_the_order_and_draws_from_the_bins(margins, size, seed):
    values = np.array(margins, dtype=float)
    edges = [0.0, 2.0, 5.0, 10.0]
    drawn = sample_by_margin(values, edges, size, seed=seed)
    assert drawn.tolist() == sorted(set(drawn.tolist()))
    assert len(drawn) == min(size, len(values))
    bins = [int((values[drawn] < 2).sum()), int(((values[drawn] >= 2) & (values[drawn] < 5)).sum())]
    bins.append(len(drawn) - sum(bins))
    inside = np.array([(values < 2).sum(), ((values >= 2) & (values < 5)).sum(), (values >= 5).sum()])
    assert bins == uniform_quotas(inside, min(size, len(values))).tolist()
    assert drawn.tolist() == sample_by_margin(values, edges, size, seed=seed).tolist()


def test_sampling_leaves_margins_outside_the_edges():
    assert sample_by_margin(np.array([0.0, 1.0, 5.0]), [0.5, 2.0], 3).tolist() == [1]
    with pytest.raises(UserError, match="increasing"):
        sample_by_margin(np.array([1.0]), [2.0, 1.0], 1)


@given(prompts=st.lists(st.sampled_from(["a", " a ", "b", "c\n"]), max_size=30), limit=st.integers(1, 4))
def test_caps_keep_so_many_per_stripped_prompt(prompts, limit):
    for mode in ("first", "random"):
        kept = cap_per_prompt(prompts, limit, mode=mode, seed=1)
        assert kept == sorted(kept)
        for prompt in {text.strip() for text in prompts}:
            have = [n for n, text in enumerate(prompts) if text.strip() == prompt]
            chosen = [n for n in kept if n in have]
            assert len(chosen) == min(limit, len(have))
            assert mode == "random" or chosen == have[:limit]


def test_rules_apply_to_their_splits():
    data = pairs((5, 5), (6, 1), (7, 1), (8, 1), prompts=["x", "x", "x", "y"])
    rules = PairRulesConfig(drop_ties=True, cap_per_prompt=1, cap_splits="train")
    assert apply_pair_rules(data, rules, split="train", seed=0)["prompt_id"][:] == ["id1", "id3"]
    assert apply_pair_rules(data, rules, split="evaluation", seed=0)["prompt_id"][:] == ["id1", "id2", "id3"]


def test_decontamination_from_a_file(tmp_path):
    file = tmp_path / "humaneval.jsonl"
    problem = {"prompt": 'def f(x):\n    """ Add one. """\n', "canonical_solution": "    return x + 1 - 0\n"}
    simple = {"prompt": 'def g(x):\n    """ Add. """\n', "canonical_solution": "    return x + y\n"}
    file.write_text("".join(json.dumps(row) + "\n" for row in (problem, simple)))
    data = pairs((9, 1), (8, 2))
    data = data.map(lambda row: {"chosen": row["chosen"] + (" RETURN x  + 1 - 0" if row["prompt"] == "p0" else "")})
    rows = apply_pair_rules(data, PairRulesConfig(decontaminate=str(file)), split="train", seed=0)
    assert rows["prompt_id"][:] == ["id1"]
    strings = filter_strings([problem, simple])
    assert strings["human_eval_solutions"] == ["return x + 1 - 0"]
    joined = {"prompt": simple["prompt"], "canonical_solution": "    return ''.join(strings)\n"}
    assert filter_strings([joined])["human_eval_solutions"] == ["return ''.join(strings)"]
    assert filter_strings([joined], fix_whitelist=True)["human_eval_solutions"] == []
    assert keep_mask(["a"], {"none": []}) == [True]
