"""Plans: mergekit's files mean here what they mean there, and blocks are those of the architecture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from reproalign.common.errors import UserError
from reproalign.common.merging.blocks import Block, Blocks, matches
from reproalign.common.merging.config import MergeConfig
from reproalign.common.merging.report import as_plan_file
from reproalign.common.merging.resolving import resolve
from reproalign.common.merging.settings import MergeSettings, normalized_weights
from reproalign.common.merging.values import evaluate
from reproalign.common.testing.checkpoints import ARCHITECTURES, random_config, save_random, tensors_of


def settings(tmp_path: Path, plan: dict | str, **keys) -> MergeSettings:
    path = tmp_path / "plan.yaml"
    path.write_text(plan if isinstance(plan, str) else yaml.safe_dump(plan))
    return resolve(MergeConfig(output_dir="x", plan=str(path), **keys))


def weights(found: MergeSettings, tensor: str, block: Block, layers: int = 5) -> list[float]:
    return [evaluate(setting, tensor, block, layers, "weights") for setting in found.weights]


TIES = """
merge_method: ties
base_model: base
models:
  - model: base
  - model: a
    parameters:
      density: [1, 0.5, 0.1]
      weight: 1.0
  - model: b
    parameters:
      density: 0.5
      weight:
        - filter: mlp
          value: 0.5
        - value: 0
parameters:
  normalize: true
  int8_mask: true
  lambda: 0.9
dtype: float16
"""


def test_mergekits_ties_with_gradients_and_filters(tmp_path):
    found = settings(tmp_path, TIES)
    assert (found.method, found.models, found.base) == ("ties", ("a", "b"), "base")
    assert (found.normalize, found.scale, found.dtype, found.trim_scope) == (True, 0.9, "float16", "tensor")
    mlp, attention = "model.layers.1.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.weight"
    assert weights(found, mlp, Block("mlp", 1)) == [1.0, 0.5]
    assert weights(found, attention, Block("attention", 1)) == [1.0, 0.0]
    density = [evaluate(found.densities[0], "x", Block("mlp", layer), 5, "density") for layer in range(5)]
    assert density == pytest.approx([1, 0.75, 0.5, 0.3, 0.1])
    assert evaluate(found.densities[0], "lm_head.weight", Block("head"), 5, "density") == 1.0


SLERP = """
merge_method: slerp
base_model: a
slices:
  - sources:
      - {model: a, layer_range: [0, 2]}
      - {model: b, layer_range: [0, 2]}
    parameters:
      t: [0, 1]
  - sources:
      - {model: a, layer_range: [2, 5]}
      - {model: b, layer_range: [2, 5]}
parameters:
  t:
    - filter: self_attn
      value: 0.25
    - value: 0.75
"""


def test_mergekits_slices_that_leave_every_layer_in_its_place(tmp_path):
    found = settings(tmp_path, SLERP)
    assert found.models == ("a", "b")
    position = {
        name: evaluate(found.t, name, block, 5, "t")
        for name, block in {
            "embed": Block("embedding"),
            "layers.0.mlp": Block("mlp", 0),
            "layers.1.mlp": Block("mlp", 1),
            "layers.3.self_attn": Block("attention", 3),
            "layers.3.mlp": Block("mlp", 3),
            "head": Block("head"),
        }.items()
    }
    assert list(position.values()) == [0, 0, 1, 0.25, 0.75, 0.75]


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"merge_method": "breadcrumbs", "models": []}, "unknown merge_method 'breadcrumbs'"),
        ({"merge_method": "linear", "models": [], "modules": {}}, "'modules' is not understood"),
        ({"merge_method": "ties", "models": [{"model": "a"}]}, "base_model is needed"),
        ({"merge_method": "linear", "models": [{"model": "a"}], "parameters": {"lambda": 2}}, "'parameters.lambda'"),
        (
            {"merge_method": "linear", "models": [{"model": "a", "parameters": {"gamma": 1}}]},
            "'models: parameters.gamma'",
        ),
        ({"merge_method": "linear", "models": [{"model": "a"}], "tokenizer_source": "union"}, "tokenizer_source=union"),
        (
            {"merge_method": "linear", "slices": [{"sources": [{"model": "a", "layer_range": [4, 8]}]}]},
            "stacks layers anew",
        ),
        ({"merge_method": "linear", "models": "a"}, "models: a list of mappings is expected"),
        ({"merge_method": "linear", "models": ["a"]}, "models: a mapping is expected, not 'a'"),
        ({"merge_method": "linear", "models": [{"parameters": {}}]}, "models: an entry has no 'model'"),
        ({"merge_method": "linear", "models": [{"model": ["a"]}]}, "must be a folder or Hub id"),
        ({"merge_method": "linear", "slices": []}, "slices: a list of mappings is expected"),
        ({"merge_method": "linear", "slices": [{"sources": [{"model": "a"}]}]}, "an entry has no 'layer_range'"),
        ({"models": "a"}, "models: a must be a list of texts"),
        ({"models": ["a"], "allow": "bin"}, "allow: bin must be a list of texts"),
        ({"models": ["a"], "normalize": "maybe"}, "normalize: maybe must be true or false"),
        ({"models": ["a"], "parts": [1, 2]}, "parts: [1, 2] must be a mapping of blocks to weights"),
        ({"models": ["a"], "method": "ties", "base": ["b"]}, "base: ['b'] must be one text"),
        ({"models": ["a"], "rank": 1.5}, "rank: 1.5 must be a whole number"),
        ({"models": ["a"], "rank": 0}, "plan.yaml: rank=0 must be at least 1"),
        ({"models": ["a"], "dtype": "float12"}, "plan.yaml: unknown dtype 'float12'"),
        ({"models": ["a"], "method": "ties", "density": [0.5, 0]}, "plan.yaml: density[1]=0 must be above 0 and at m"),
        ({"merge_method": "linear", "models": [{"model": "a"}], "dtype": "int8"}, "plan.yaml: unknown dtype 'int8'"),
        ({"method": "linear", "modles": ["a"]}, "unknown key 'modles' (did you mean 'models'?)"),
        ("a: [", "not valid YAML"),
        ("- a", "a mapping of keys is expected"),
    ],
)
def test_what_a_plan_asks_for_and_is_not_done_is_refused_by_its_key(tmp_path, plan, message):
    with pytest.raises(UserError, match="plan") as error:
        settings(tmp_path, plan)
    assert message in str(error.value)


def test_the_command_line_goes_before_the_plan(tmp_path):
    plan = {"method": "ties", "base": "z", "models": ["a", "b"], "density": 0.3, "weights": [1, 2]}
    found = settings(tmp_path, plan, density=0.4)
    assert found.densities == (0.4, 0.4)
    assert found.weights == (1.0, 2.0)
    assert found.scale == 1.0


def test_averages_are_normalised_and_task_vectors_are_not(tmp_path):
    average = settings(tmp_path, {"models": ["a", "b"], "weights": [1, 3]})
    assert normalized_weights(average, [1.0, 3.0], "x") == (0.25, 0.75)
    plan = {"method": "task_arithmetic", "base": "z", "models": ["a", "b"], "weights": [1, 3], "scale": 0.5}
    assert normalized_weights(settings(tmp_path, plan), [1.0, 3.0], "x") == (1.0, 3.0)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_tensor_has_its_block(kind):
    config = random_config(kind)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    blocks = Blocks(config.to_dict() | {"architectures": [type(model).__name__]}, kind)
    assert blocks.layers == 4
    found = {name: blocks.block(name) for name in model.state_dict()}
    kinds = {block.kind for block in found.values()}
    assert kinds == {"embedding", "attention", "mlp", "norm", "head"}
    for layer in range(4):
        inside = [block.kind for block in found.values() if block.layer == layer]
        assert set(inside) == {"attention", "mlp", "norm"}
    embeddings = [name for name, block in found.items() if block.kind == "embedding"]
    assert len(embeddings) == (2 if kind == "gpt2" else 1)  # GPT-2 embeds positions as well
    assert [name for name, block in found.items() if block.kind == "norm" and block.layer is None]


def test_names_of_older_files_are_placed_by_their_path():
    shape = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 8, "vocab_size": 32}
    config = AutoConfig.for_model("mixtral", num_attention_heads=2, num_key_value_heads=1, **shape)
    blocks = Blocks(config.to_dict() | {"architectures": ["MixtralForCausalLM"]}, "mixtral")
    assert blocks.block("model.layers.1.block_sparse_moe.experts.3.w2.weight") == Block("mlp", 1)
    assert blocks.block("layers.0.self_attn.q_proj.weight") == Block("attention", 0)  # saved without the head


def test_names_that_the_loader_changes_are_placed_by_what_they_become(tmp_path):
    config = random_config("gpt_neox").to_dict() | {"architectures": ["GPTNeoXForCausalLM"]}
    blocks = Blocks(config, "gpt_neox")
    stored = tensors_of(save_random(tmp_path / "model", "gpt_neox", seed=0))
    assert "embed_out.weight" in stored
    assert [name for name in stored if blocks.block(name).kind == "head"] == ["embed_out.weight"]
    assert blocks.owner("embed_out.weight") == blocks.head == "lm_head"
    assert blocks.needs("embed_out.weight")
    assert not any(blocks.block(name).kind == "other" for name in stored)


def test_selectors():
    block = Block("mlp", 7)
    meant = ["mlp", "layers.7", "layers.0-7", "layers.7-9.mlp", "*up_proj*"]
    assert all(matches(selector, "model.layers.7.mlp.up_proj.weight", block) for selector in meant)
    others = ["attention", "layers.8", "layers.0-6", "layers.7.norm", "*down*"]
    assert not any(matches(selector, "model.layers.7.mlp.up_proj.weight", block) for selector in others)
    assert not matches("layers.0-9", "lm_head.weight", Block("head"))


def test_the_plan_of_a_model_card_is_the_same_merge(tmp_path):
    parts = {"norm.density": 0.3, "layers.0-1": {"weights": [0.3, 0.7], "density": 0.5}, "norm.weights": [0, 1]}
    plan = {"method": "dare_ties", "base": "z", "models": ["a", "b"], "parts": parts}
    found = settings(tmp_path, plan)
    card = as_plan_file(found)
    assert card["density"] == 0.1
    assert settings(tmp_path, card) == found
