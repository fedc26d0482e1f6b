"""Domains of one size, rows of one item per domain, and batches that the loss can read."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from reproalign.more.groups import (
    Groups,
    ItemCollator,
    Mixture,
    ReleasedResamplingError,
    all_rows,
    resample,
    resample_copies,
    resample_released,
)
from reproalign.more.loss import pair_signs


def domain(number: int, count: int, responses: int = 2) -> Dataset:
    """Return items whose tokens tell domain, row and response apart; the first response is best."""
    return Dataset.from_list(
        [
            {
                "input_ids": [[number, row] + [9] * response for response in range(responses)],
                "scores": [float(responses - 1 - response) for response in range(responses)],
                "tokens": 0,
            }
            for row in range(count)
        ]
    )


@given(sizes=st.lists(st.integers(1, 12), min_size=1, max_size=4), size=st.integers(1, 40), seed=st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_paper_resampling_uses_every_item_equally_often(sizes, size, seed):
    names = [str(n) for n in range(len(sizes))]
    found = resample(sizes, size, names=names, rule=resample_copies, seed=seed)
    for number, (count, picks) in enumerate(zip(sizes, found, strict=True)):
        assert picks.shape == (size, 2)
        assert set(picks[:, 0]) == {number}
        if count >= size:
            assert picks[:, 1].tolist() == [*range(size)]
        else:
            uses = Counter(picks[:, 1].tolist())
            assert set(uses) == set(range(count))
            assert max(uses.values()) - min(uses.values()) <= 1
    again = resample(sizes, size, names=names, rule=resample_copies, seed=seed)
    assert all((a == b).all() for a, b in zip(found, again, strict=True))


@given(count=st.integers(1, 9), size=st.integers(1, 60))
@settings(deadline=None, max_examples=200)
def test_released_resampling_of_one_domain_works_for_the_sizes_that_its_error_names(count, size):
    works = size <= count or (size > 2 * count and (count == 1 or size % count != 1))
    if works:
        (picks,) = resample_released([count], size, random.Random(1))
        assert len(picks) == size
        assert picks[: min(count, size), 1].tolist() == [*range(min(count, size))]
    else:
        with pytest.raises(ReleasedResamplingError, match=f"sizes up to {count} work, and those above {2 * count} "):
            resample_released([count], size, random.Random(1))


def test_released_resampling_names_the_exception_that_the_release_stops_with():
    with pytest.raises(ReleasedResamplingError, match="domain 'webgpt'") as no_pool:
        resample_released([9, 6], 9, random.Random(1), names=["helpful", "webgpt"])
    assert no_pool.value.original == "UnboundLocalError"
    with pytest.raises(ReleasedResamplingError) as small_pool:
        resample_released([2], 7, random.Random(1))
    assert small_pool.value.original == "ValueError"


def test_released_resampling_takes_the_pool_of_an_earlier_domain():
    first, second = resample_released([2, 11], 12, random.Random(11))
    assert set(first[:, 0]) == {0}
    assert second[:11].tolist() == [[1, row] for row in range(11)]
    assert second[11][0] == 0


def test_groups_hold_one_item_of_each_domain():
    picks = resample([3, 2], 3, names=["a", "b"], rule=resample_copies, seed=1)
    groups = Groups([domain(0, 3), domain(1, 2)], picks)
    assert len(groups) == 3
    for number in range(3):
        rows = groups[number]
        assert [row["domain"] for row in rows] == [0, 1]
        assert [row["input_ids"][0][0] for row in rows] == [0, 1]
        assert rows[0]["input_ids"][0][1] == number
        assert set(rows[0]) == {"domain", "input_ids", "scores"}
    with pytest.raises(ValueError, match="equally many"):
        Groups([domain(0, 3), domain(1, 2)], [all_rows(0, 3), all_rows(1, 2)])


def test_a_foreign_item_counts_for_the_domain_whose_place_it_takes():
    groups = Groups([domain(0, 2), domain(1, 11)], resample_released([2, 11], 12, random.Random(11)))
    last = groups[11][1]
    assert last["domain"] == 1
    assert last["input_ids"][0][0] == 0


def test_a_mixture_holds_single_items():
    mixture = Mixture([domain(0, 3), domain(1, 2)], [all_rows(0, 3), all_rows(1, 2)])
    assert [(row["domain"], row["input_ids"][0][1]) for (row,) in mixture] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    (row,) = Mixture([domain(0, 1)], [all_rows(0, 1)], [4])[0]
    assert row["domain"] == 4


def test_the_collator_lays_responses_out_by_slot():
    rows = [
        [{"domain": 0, "input_ids": [[5, 6, 7], [5]], "scores": [1.0, 0.0]}],
        [{"domain": 2, "input_ids": [[1], [2, 3], [4]], "scores": [0.0, 2.0, 1.0]}],
    ]
    batch = ItemCollator(0)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [5, 0, 0], [1, 0, 0], [2, 3, 0], [4, 0, 0]]
    assert batch["attention_mask"].sum(1).tolist() == [3, 1, 1, 2, 1]
    assert batch["slot"].tolist() == [0, 1, 3, 4, 5]
    assert batch["scores"].tolist() == [[1, 0, -1], [0, 2, 1]]
    assert batch["scores"].dtype == torch.float32
    assert batch["domain"].tolist() == [0, 2]
    assert pair_signs(batch["scores"]).abs().sum((1, 2)).tolist() == [2, 6]
    left = ItemCollator(0, "left")(rows)
    assert left["input_ids"].tolist() == [[5, 6, 7], [0, 0, 5], [0, 0, 1], [0, 2, 3], [0, 0, 4]]
    assert left["attention_mask"][1].tolist() == [0, 0, 1]


def test_batches_of_groups_are_batches_of_their_items():
    groups = Groups([domain(0, 2), domain(1, 2, responses=3)], [all_rows(0, 2), all_rows(1, 2)])
    batch = ItemCollator(0)([groups[0], groups[1]])
    single = ItemCollator(0)([[item] for group in (groups[0], groups[1]) for item in group])
    assert batch["domain"].tolist() == [0, 1, 0, 1]
    assert all(torch.equal(batch[name], single[name]) for name in batch)
