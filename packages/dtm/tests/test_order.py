"""The order of rows under ``variant=released``: the one of the release that is known, whatever the seed is."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from datasets import Dataset

from reproalign.dtm.cli import main
from reproalign.dtm.train.order import ReleasedOrder
from reproalign.dtm.train.trainer import SupervisedTrainer

ROWS = [{"instruction": f"Count to {n}.", "output": "one two three" + " four" * n} for n in range(6)]


def test_an_epoch_draws_on_from_where_the_last_one_stopped() -> None:
    table = ReleasedOrder(Dataset.from_dict({"n": list(range(5))}))
    generator = torch.Generator()
    assert generator.initial_seed() == 67280421310721
    for epoch in range(3):
        expected = torch.randperm(5, generator=generator).tolist()
        torch.randperm(5, generator=generator)  # a sampler draws once more at its end
        table.set_epoch(epoch)
        assert [table[place]["n"] for place in range(len(table))] == expected
    table.set_epoch(0)
    assert [row["n"] for row in (table[place] for place in range(5))] != expected


@pytest.fixture
def lengths_seen(monkeypatch):
    seen: list[int] = []
    original = SupervisedTrainer.training_step

    def noting(self, model, inputs, *args, **kwargs):
        seen.append(int((inputs["labels"] != -100).sum()))
        return original(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(SupervisedTrainer, "training_step", noting)
    return seen


def test_training_takes_this_order_epoch_by_epoch_also_when_resumed(tmp_path, lengths_seen, monkeypatch) -> None:
    """Rows are told apart by their length."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    common = ["train", "model.name=tiny:llama", f"rows=[{tmp_path / 'rows.jsonl'}]", "trainer.num_train_epochs=2"]
    common += ["trainer.gradient_accumulation_steps=1", "trainer.warmup_steps=0"]
    common += ["trainer.save_strategy=steps", "trainer.save_steps=4"]
    assert main([*common, "variant=released", "seed=1", f"output_dir={tmp_path / 'whole'}"]) == 0
    whole = list(lengths_seen)
    generator = torch.Generator()
    first, _, second = (torch.randperm(6, generator=generator).tolist() for _ in range(3))
    by_rank = sorted(whole[:6])
    assert [by_rank.index(length) for length in whole[6:]] != [by_rank.index(length) for length in whole[:6]]
    selected = np.random.default_rng(1).permutation(6)
    expected = [int(selected[place]) for place in (*first, *second)]
    assert [by_rank.index(length) for length in whole] == expected

    def stopping(self, *args, **kwargs):
        if self.state.global_step == 8:
            raise KeyboardInterrupt
        return noting(self, *args, **kwargs)

    noting = SupervisedTrainer.training_step
    lengths_seen.clear()
    with monkeypatch.context() as patch:
        patch.setattr(SupervisedTrainer, "training_step", stopping)
        assert main([*common, "variant=released", "seed=1", f"output_dir={tmp_path / 'stopped'}"]) == 130
    assert main([*common, "variant=released", "seed=1", f"output_dir={tmp_path / 'stopped'}"]) == 0
    assert lengths_seen == whole
