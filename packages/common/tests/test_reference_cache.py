"""Cached log-probs: processes share the work, an interrupted computation goes on, the values stay the same."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn

from reproalign.common.config.model import LogprobsConfig
from reproalign.common.errors import UserError
from reproalign.common.models.tiny import tiny_model
from reproalign.common.text.collate import UnpairedCollator
from reproalign.common.training import reference_cache
from reproalign.common.training.reference_cache import compute_once

LENGTHS = [3, 9, 5, 7, 4, 8, 6]  # in batches of two: four blocks, of which the last is half a batch
ROWS = Dataset.from_list(
    [{"input_ids": list(range(3, 3 + length)), "prompt_length": 2, "label": True} for length in LENGTHS]
)


class Rank:
    """Stands for the state of one process of several, which stops where it would wait for the others."""

    def __init__(self, index: int, processes: int) -> None:
        self.process_index, self.num_processes, self.is_main_process = index, processes, index == 0

    def wait_for_everyone(self) -> None:
        if self.num_processes > 1:
            raise InterruptedError

    def local_main_process_first(self) -> nullcontext[None]:
        return nullcontext()


@pytest.fixture
def compute(monkeypatch):
    """Compute as one of several processes; return the values (None: left to wait) and the batches it measured."""

    def run(folder: Path, index: int = 0, processes: int = 1, stop_after: int | None = None):
        monkeypatch.setattr(reference_cache, "PartialState", lambda: Rank(index, processes))
        measured = []

        def measure(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            if len(measured) == stop_after:
                raise InterruptedError
            measured.append(len(batch["input_ids"]))
            output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            return {"sums": output.logits.float().logsumexp(-1).sum(1).detach()}

        try:
            values = compute_once(
                ROWS,
                ["input_ids", "prompt_length"],
                measure,
                load_model=lambda: tiny_model(seed=2),
                weights="w",
                collator=UnpairedCollator(0),
                cache_dir=folder,
                batch_size=2,
                logprobs=LogprobsConfig(),
                label="rows",
            )
        except InterruptedError:
            return None, measured
        return values["sums"], measured

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*.safetensors"))}


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_processes_share_the_work_and_get_the_single_ones_values(tmp_path, compute, processes):
    alone, measured = compute(tmp_path / "alone")
    assert measured == [2, 2, 2, 1]
    shares = [compute(tmp_path / "shared", index, processes)[1] for index in range(processes)]
    assert [len(share) for share in shares] == [len(range(index, 4, processes)) for index in range(processes)]
    joined, measured = compute(tmp_path / "shared")
    assert measured == []
    assert torch.equal(joined, alone)
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")


def test_what_an_interruption_left_is_gone_on_with_in_any_number_of_processes(tmp_path, compute):
    alone, _ = compute(tmp_path / "alone")
    assert compute(tmp_path / "part", stop_after=1) == (None, [2])
    assert compute(tmp_path / "part", 1, 2) == (None, [2, 1])
    values, measured = compute(tmp_path / "part")
    assert measured == [2]
    assert torch.equal(values, alone)


def test_a_damaged_block_is_computed_again(tmp_path, compute, capsys):
    alone, _ = compute(tmp_path)
    for number, harm in enumerate(
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"), lambda path: path.unlink())
    ):
        harm(sorted(tmp_path.rglob("*.safetensors"))[number])
        values, measured = compute(tmp_path)
        assert measured == [2]
        assert torch.equal(values, alone)
    assert "000000000.safetensors was altered" in capsys.readouterr().err


def test_many_batches_go_into_files_of_several(tmp_path, compute, monkeypatch):
    alone, _ = compute(tmp_path / "alone")
    monkeypatch.setattr(reference_cache, "BLOCK_BATCHES", 2)
    values, _ = compute(tmp_path / "blocks")
    assert torch.equal(values, alone)
    assert [Path(name).name for name in contents(tmp_path / "blocks")] == [
        "000000000.safetensors",
        "000000004.safetensors",
    ]


def test_under_zero3_only_what_is_cached_is_read(tmp_path, compute, monkeypatch):
    monkeypatch.setattr(reference_cache, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(UserError, match="log-probs cannot be computed under ZeRO-3; run the same command once with"):
        compute(tmp_path)
    monkeypatch.setattr(reference_cache, "is_deepspeed_zero3_enabled", lambda: False)
    alone, _ = compute(tmp_path)
    monkeypatch.setattr(reference_cache, "is_deepspeed_zero3_enabled", lambda: True)
    assert torch.equal(compute(tmp_path)[0], alone)
