"""Two processes give the ratios' gradient that one gives: with rows shared (DDP), and with weights sharded (FSDP2)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from reproalign.ama.adapt.likelihood import LikelihoodObjective
from reproalign.ama.adapt.merged import MERGED, PAIR, RatioModel
from reproalign.ama.adapt.pair import open_pair
from reproalign.ama.adapt.rows import TokenRow
from reproalign.ama.parts import make_parts
from reproalign.ama.tensors import tensor_rule
from reproalign.common.launch.ending import end_after_leaving, leave
from reproalign.common.models.tiny import tiny_model
from reproalign.common.models.tiny_tokenizers import tiny_tokenizer
from reproalign.common.testing import run_command

WAYS = [
    (way, rule, held)
    for way in ("ddp", "fsdp")
    for rule in ("linear_head_post", "released_ma")
    for held in (MERGED, PAIR)
]


def rows() -> list[TokenRow]:
    """Five rows of different lengths: the processes have unequal shares of them."""
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(3, 500, (9 + count,), generator=generator).tolist() for count in range(5)]
    return [TokenRow(row, [-100] * 3 + row[3:]) for row in ids]


def evaluate(folder: Path, rule: str, held: str, mesh: Any = None) -> dict[str, Any]:
    """Value and gradient at two settings of the ratios, the second after the weights were merged again."""
    network = AutoModelForCausalLM.from_pretrained(folder / "post", dtype="auto").eval()
    with open_pair(str(folder / "pre"), str(folder / "post")) as pair:
        parts = make_parts("even2", pair.blocks)
        chosen = tensor_rule(rule, None, parts, pair.blocks)
        missing = [tensors.parameter for tensors in pair.locate(network, chosen) if not tensors.names]
        for parent in ("pre", "post"):
            pair.keep(AutoModelForCausalLM.from_pretrained(folder / parent, dtype="auto"), missing)
        model = RatioModel(network, pair, chosen, {"0": 0.1, "1": 0.5}, base=0.3, held=held)
        if mesh is not None:
            model.shard(mesh)
        found = []
        for ratios in ([0.1, 0.5], [0.25, 0.35]):
            model.set_ratios(ratios)
            answer = LikelihoodObjective(model, 0).evaluate(rows(), 2, gradient=True)
            found.append([answer.value, *answer.gradient, answer.tokens])
        sharded = sum(isinstance(entry.first, DTensor) for entry in model.learned)
    return {"found": found, "sharded": sharded}


@pytest.mark.distributed
def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    for seed, name in enumerate(("pre", "post")):
        tiny_model("gpt_neox", seed=seed, dtype=torch.float64, num_hidden_layers=3).save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    process = run_command([*launcher, __file__, str(tmp_path)])
    assert process.returncode == 0, process.stderr[-5000:]
    results = json.loads((tmp_path / "found.json").read_text())
    for way, rule, held in WAYS:
        alone, together = evaluate(tmp_path, rule, held)["found"], results[f"{way}-{rule}-{held}"]
        assert (together["sharded"] > 0) == (way == "fsdp")
        for one, other in zip(alone, together["found"], strict=True):
            assert other == pytest.approx(one, rel=1e-10), (way, rule, held)


def work(folder: Path) -> None:
    """One of the processes."""
    state = PartialState(cpu=True)
    mesh = init_device_mesh("cpu", (state.num_processes,))
    found = {
        f"{way}-{rule}-{held}": evaluate(folder, rule, held, mesh if way == "fsdp" else None)
        for way, rule, held in WAYS
    }
    if state.is_main_process:
        (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    end_after_leaving()
    work(Path(sys.argv[1]))
    leave()
