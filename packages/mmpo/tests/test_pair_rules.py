"""Pair rules: sampling over margins, cap per prompt, ties and decontamination, against brute force and definitions."""

from __future__ import annotations

import json

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from reproalign.common.config.data import DataConfig
from reproalign.common.config.text import PairTextConfig
from reproalign.common.errors import UserError
from reproalign.common.models.tiny_tokenizers import tiny_tokenizer
from reproalign.mmpo.config import PairRulesConfig, TargetConfig
from reproalign.mmpo.data import (
    apply_pair_rules,
    cap_per_prompt,
    proportional_quotas,
    quantile_edges,
    sample_by_margin,
    uniform_quotas,
)
from reproalign.mmpo.decontaminate import filter_strings, keep_mask
from reproalign.mmpo.prepare import PairOptions, prepare_split

counts = st.lists(st.integers(0, 30), min_size=1, max_size=8).map(np.array)


def pairs(*rows: tuple[str, float, float]) -> Dataset:
    """Make pairs of (prompt, score of chosen, score of rejected)."""
    return Dataset.from_list(
        [
            {"prompt": prompt, "chosen": f"good {n}", "rejected": f"bad {n}", "prompt_id": f"id{n}"}
            | {"score_chosen": chosen, "score_rejected": rejected}
            for n, (prompt, chosen, rejected) in enumerate(rows)
        ]
    )


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
    data = pairs(("x", 5.0, 5.0), ("x", 6.0, 1.0), ("x", 7.0, 1.0), ("y", 8.0, 1.0))
    rules = PairRulesConfig(drop_ties=True, cap_per_prompt=1, cap_splits="train")
    assert apply_pair_rules(data, rules, split="train", seed=0)["prompt_id"][:] == ["id1", "id3"]
    assert apply_pair_rules(data, rules, split="evaluation", seed=0)["prompt_id"][:] == ["id1", "id2", "id3"]


def test_sampling_is_for_training_pairs_and_needs_a_size():
    data = pairs(*(("x", float(margin), 0.0) for margin in (1, 1, 1, 1, 9)))
    rules = PairRulesConfig(sampling="uniform", sampling_size=2, sampling_edges=[0.0, 5.0, 10.0])
    drawn = apply_pair_rules(data, rules, split="train", seed=0)
    assert drawn["score_chosen"][:] == [1.0, 9.0]
    assert len(apply_pair_rules(data, rules, split="evaluation", seed=0)) == 5
    with pytest.raises(UserError, match=r"needs pairs\.sampling_size"):
        apply_pair_rules(data, PairRulesConfig(sampling="proportional"), split="train", seed=0)


def test_quantile_bins_merge_where_margins_are_tied():
    assert quantile_edges(np.arange(11.0), 2).tolist() == [0.0, 5.0, 10.0]
    assert quantile_edges(np.array([1.0, 1.0, 1.0, 4.0]), 3).tolist() == [1.0, 4.0]
    tied = np.full(4, 3.0)
    assert sample_by_margin(tied, quantile_edges(tied, 5), 2).size == 2


def test_decontamination_from_a_file(tmp_path):
    file = tmp_path / "humaneval.jsonl"
    problem = {"prompt": 'def f(x):\n    """ Add one. """\n', "canonical_solution": "    return x + 1 - 0\n"}
    simple = {"prompt": 'def g(x):\n    """ Add. """\n', "canonical_solution": "    return x + y\n"}
    file.write_text("".join(json.dumps(row) + "\n" for row in (problem, simple)))
    data = pairs(("p0", 9.0, 1.0), ("p1", 8.0, 2.0))
    data = data.map(lambda row: {"chosen": row["chosen"] + (" RETURN x  + 1 - 0" if row["prompt"] == "p0" else "")})
    rows = apply_pair_rules(data, PairRulesConfig(decontaminate=str(file)), split="train", seed=0)
    assert rows["prompt_id"][:] == ["id1"]
    strings = filter_strings([problem, simple])
    assert strings["human_eval_solutions"] == ["return x + 1 - 0"]
    joined = {"prompt": simple["prompt"], "canonical_solution": "    return ''.join(strings)\n"}
    assert filter_strings([joined])["human_eval_solutions"] == ["return ''.join(strings)"]
    assert filter_strings([joined], fix_whitelist=True)["human_eval_solutions"] == []
    assert keep_mask(["a"], {"none": []}) == [True]


def test_the_cap_keeps_the_first_rows_of_the_shuffled_order():
    data = Dataset.from_list([{"prompt": f"p{row % 3}", "row": row} for row in range(30)])
    order = np.random.default_rng(42).permutation(30).tolist()
    expected, seen = [], dict.fromkeys(range(3), 0)
    for row in order:
        seen[row % 3] += 1
        if seen[row % 3] <= 2:
            expected.append(row)
    rules = PairRulesConfig(shuffle_seed=42, cap_per_prompt=2)
    for split in ("train", "evaluation"):
        assert apply_pair_rules(data, rules, split=split, seed=0)["row"][:] == expected
    unshuffled = apply_pair_rules(data, PairRulesConfig(cap_per_prompt=2), split="train", seed=0)
    assert unshuffled["row"][:] == [0, 1, 2, 3, 4, 5]


def test_texts_are_swapped_before_the_chosen_one_is_decontaminated(tmp_path):
    problems, labels = tmp_path / "problems.jsonl", tmp_path / "labels.json"
    problems.write_text(json.dumps({"prompt": '"""Add two numbers up."""', "canonical_solution": "secret = 1"}) + "\n")
    labels.write_text(json.dumps([{"prompt_id": "swapped", "p_chosen": 0.1}]))
    texts = {"prompt": "p", "chosen": "secret = 1", "rejected": "no"}
    rows = [{**texts, "prompt_id": name} for name in ("as-is", "swapped")]
    scores = {"score_chosen": 2.0, "score_rejected": 1.0, "source": None, "domain": None}
    options = PairOptions(
        DataConfig(cache_dir=str(tmp_path)),
        PairTextConfig(),
        TargetConfig(gamma=None, soft_labels=str(labels)),
        PairRulesConfig(decontaminate=str(problems)),
        seed=0,
    )
    kept = prepare_split(Dataset.from_list([row | scores for row in rows]), tiny_tokenizer(), options, "train", None)
    assert kept["p_chosen"][:] == [0.9]
