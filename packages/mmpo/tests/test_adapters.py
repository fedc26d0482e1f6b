"""LoRA: what the release cannot do (ERRATA Q3, Q18)."""

from __future__ import annotations

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import load_file

from reproalign.mmpo.cli import main

LORA = ["model.lora.enabled=true", "trainer.max_steps=2", "trainer.save_strategy=no", "data.max_eval_rows=8"]


def test_a_reward_models_head_is_trained_and_saved_with_its_adapter(tmp_path):
    heads = []
    for rate in ("1e-3", "0"):
        folder = tmp_path / rate
        words = [*LORA, f"trainer.learning_rate={rate}", f"output_dir={folder}"]
        assert main(["reward", "experiment=smoke-reward", *words]) == 0
        saved = load_file(folder / "model" / "adapter_model.safetensors")
        (head,) = [value for name, value in saved.items() if "score" in name]
        loaded = AutoPeftModelForSequenceClassification.from_pretrained(folder / "model", num_labels=1)
        assert any(torch.equal(value, head) for name, value in loaded.state_dict().items() if "score" in name)
        heads.append(head)
    # Both began alike: two steps of AdamW move no weight by more than twice the rate.
    assert 1e-5 < (heads[0] - heads[1]).abs().max() < 2.1e-3


@pytest.mark.parametrize(
    ("variant", "drops"), [pytest.param("paper", True, marks=pytest.mark.slow), ("released", False)]
)
def test_adapters_drop_out_except_where_the_release_turned_it_off(tmp_path, variant, drops):
    """ERRATA Q34a. Two policies that differ in their adapters' dropout alone become different only where it acts."""
    adapters = []
    for dropout in ("0.5", "0"):
        folder = tmp_path / dropout
        words = [*LORA, f"variant={variant}", f"model.lora.dropout={dropout}", "evaluate_before=false"]
        assert main(["train", "experiment=smoke", *words, f"output_dir={folder}"]) == 0
        adapters.append(load_file(folder / "model" / "adapter_model.safetensors"))
    same = all(torch.equal(value, adapters[1][name]) for name, value in adapters[0].items())
    assert same is not drops
