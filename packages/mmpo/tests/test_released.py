"""What the release goes through: epochs as transformers 4.38.1 counts them, and facts of every published launch."""

from __future__ import annotations

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainingArguments
from transformers.trainer_utils import SaveStrategy

from reproalign.common.errors import UserError
from reproalign.mmpo.released import count_steps, lay_out_epochs


def steps_of_the_original_loop(
    rows: int, processes: int, micro_batch: int, accumulation: int, epochs: int
) -> tuple[list[int], int]:
    """The loop of transformers 4.38.1's Trainer, counted through: micro-batches since the start per optimiser step."""
    length = -(-rows // (processes * micro_batch))
    most = epochs * max(length // accumulation, 1)
    seen, stepped = 0, []
    for _ in range(epochs):
        for _ in range(length):
            seen += 1
            if seen % accumulation == 0 and len(stepped) < most:
                stepped.append(seen)
    return stepped, most


@given(
    rows=st.integers(20, 400),
    processes=st.integers(1, 4),
    micro_batch=st.integers(1, 3),
    accumulation=st.integers(1, 5),
    epochs=st.integers(1, 4),
)
def test_left_over_micro_batches_carry_over(rows, processes, micro_batch, accumulation, epochs):
    per_rank = -(-rows // (processes * micro_batch))
    if per_rank < accumulation:
        with pytest.raises(UserError, match="less than one step"):
            count_steps(rows, processes, micro_batch, accumulation, epochs)
        return
    steps = count_steps(rows, processes, micro_batch, accumulation, epochs)
    stepped, most = steps_of_the_original_loop(rows, processes, micro_batch, accumulation, epochs)
    assert (steps.total, len(stepped)) == (most, most)
    assert stepped == [accumulation * number for number in range(1, most + 1)]  # carried, not begun anew
    assert steps.rows_per_epoch * steps.epochs >= steps.total * accumulation * processes * micro_batch
    assert 0 <= steps.rows_per_epoch - rows < processes * micro_batch


def arguments(folder, **values) -> TrainingArguments:
    return TrainingArguments(str(folder), use_cpu=True, report_to=[], **values)


def test_epochs_are_permutations_one_after_the_other(tmp_path):
    data = Dataset.from_dict({"row": list(range(11))})
    given_ = arguments(
        tmp_path,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        num_train_epochs=3,
        save_strategy="epoch",
    )
    laid_out, steps = lay_out_epochs(data, given_)
    assert (steps.per_epoch, steps.total, steps.epochs) == (3, 9, 3)  # 6 micro-batches, of 12 rows, make 3 steps
    rows = laid_out["row"][:]
    epochs = [rows[start : start + 12] for start in range(0, 36, 12)]
    assert all(sorted(epoch[:11]) == list(range(11)) for epoch in epochs)
    assert all(epoch[11] == epoch[0] for epoch in epochs)  # begins again to fill the last micro-batch
    assert epochs[0] != epochs[1]
    assert (given_.max_steps, given_.save_strategy, given_.save_steps) == (9, SaveStrategy.STEPS, 3)
    assert given_.train_sampling_strategy == "sequential"


def test_a_limit_of_steps_lays_out_no_more_than_it_takes(tmp_path):
    data = Dataset.from_dict({"row": list(range(10))})
    laid_out, steps = lay_out_epochs(data, arguments(tmp_path, per_device_train_batch_size=1, max_steps=12))
    assert (steps.total, len(laid_out)) == (12, 20)


def test_another_order_is_refused(tmp_path):
    data = Dataset.from_dict({"row": [1, 2]})
    with pytest.raises(UserError, match=r"remove trainer\.train_sampling_strategy"):
        lay_out_epochs(data, arguments(tmp_path, train_sampling_strategy="sequential"))
