"""Precision belongs to the recipe: what a configuration says is settled or refused before anything is started."""

from __future__ import annotations

import pytest
from toy.cli import APP, main

from reproalign.common.errors import UserError
from reproalign.common.precision import held_dtype, settle_precision
from reproalign.common.testing import composed


@pytest.mark.parametrize(
    ("dtype", "trainer", "adapters", "held"),
    [
        ("float32", {"bf16": True}, False, "float32"),
        ("float32", {}, False, "float32"),
        ("bfloat16", {"bf16": False}, False, "bfloat16"),
        ("bfloat16", {}, False, "bfloat16"),
        ("auto", {}, False, "auto"),
        ("auto", {"bf16": True}, False, "float32"),
        ("auto", {"fp16": True}, False, "float32"),
        ("auto", {"bf16": True}, True, "auto"),  # the base's; adapters are float32
        ("bfloat16", {"bf16": True}, True, "bfloat16"),
        ("float16", {"fp16": True}, True, "float16"),
    ],
)
def test_the_dtype_that_weights_are_read_in(dtype, trainer, adapters, held):
    assert held_dtype(dtype, trainer, adapters=adapters) == held


@pytest.mark.parametrize(("dtype", "key"), [("bfloat16", "bf16"), ("float16", "fp16"), ("float16", "bf16")])
def test_sixteen_bit_weights_beside_autocast_are_refused_with_both_choices(dtype, key):
    with pytest.raises(UserError) as refused:
        held_dtype(dtype, {key: True}, adapters=False)
    assert "model.dtype=float32" in str(refused.value)
    assert f"trainer.{key}=false" in str(refused.value)


def test_it_is_refused_as_the_configuration_is_composed_and_leaves_nothing_behind(tmp_path, capsys):
    words = [
        "model=tiny",
        "model.dtype=bfloat16",
        "trainer.bf16=true",
        f"output_dir={tmp_path / 'run'}",
    ]
    assert main(["train", *words, "--dry-run"]) == 2
    assert main(["train", *words]) == 2
    assert "model.dtype=bfloat16 with trainer.bf16=true" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_auto_beside_autocast_is_recorded_as_float32():
    words = ["model.name=a/b", "output_dir=x"]
    assert composed(APP, *words, "trainer.bf16=true", verb="train")["model"]["dtype"] == "float32"
    assert composed(APP, *words, verb="train")["model"]["dtype"] == "auto"


@pytest.mark.parametrize(
    ("strategy", "dtype", "adapters"),
    [
        ("zero2", "auto", False),  # DeepSpeed would make it float32, whatever was saved
        ("zero1", "float16", False),
        ("zero3-offload", "bfloat16", False),  # states on the host are float32
        ("zero3", "bfloat16", True),  # the base as well would be float32
    ],
)
def test_what_deepspeed_holds_otherwise_than_the_others_is_refused(strategy, dtype, adapters):
    config = {
        "model": {"dtype": dtype, "lora": {"enabled": adapters}},
        "launch": {"strategy": strategy},
        "trainer": {},
    }
    with pytest.raises(UserError, match=f"model.dtype={dtype} without trainer.bf16 .* launch.strategy={strategy}"):
        settle_precision(config)
    settled = {**config, "model": {**config["model"], "dtype": "float32"}}
    assert settle_precision(settled) == settled
    assert settle_precision({**config, "launch": {"strategy": "fsdp"}})["model"]["dtype"] == dtype
