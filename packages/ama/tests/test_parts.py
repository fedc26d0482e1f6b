"""Parts and rules: which layers share a ratio, and which tensors have one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reproalign.ama.average.config import TENSORS
from reproalign.ama.levels import HEAD, released_layer_groups
from reproalign.ama.parts import Parts, linear_modules, make_parts, parts_of_layers
from reproalign.ama.tensors import BASE, POST, PRE, tensor_rule
from reproalign.common.errors import UserError
from reproalign.common.merging.blocks import Blocks
from reproalign.common.testing.checkpoints import ARCHITECTURES, random_config

CLASSES = {
    "llama": "LlamaForCausalLM",
    "gpt_neox": "GPTNeoXForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "qwen2": "Qwen2ForCausalLM",
}


def blocks_of(kind: str, **overrides) -> Blocks:
    config = random_config(kind, **overrides).to_dict()
    return Blocks({**config, "architectures": [CLASSES[kind]]}, kind)


def sizes(level: str, layers: int) -> list[float]:
    return list(parts_of_layers(level, layers).layer_shares)


@pytest.mark.parametrize(
    ("level", "layers", "expected"),
    [
        ("paper3", 26, [8, 9, 9]),  # 1-8, 9-17, 18-26 of the paper
        ("7#16", 26, [8, 9, 9]),
        ("paper3", 32, [10, 11, 11]),
        ("block3", 26, [8, 8, 10]),
        ("block3", 30, [8, 8, 14]),
        ("block3", 32, [11, 10, 11]),
        ("block3", 12, [8, 4]),
        ("block3", 6, [6]),
        ("block6", 26, [4, 4, 4, 4, 4, 6]),
        ("block9", 26, [2] * 8 + [10]),
        ("even4", 26, [6, 7, 6, 7]),
        ("block1", 5, [5]),
        ("layerwise", 3, [1, 1, 1]),
        ("lblock3", 26, [8, 8, 10, 0]),
    ],
)
def test_levels_cut_the_layers_as_the_paper_and_the_release_do(level, layers, expected):
    assert sizes(level, layers) == expected


@given(st.integers(1, 80), st.data())
def test_every_layer_has_one_part_and_parts_follow_each_other(layers, data):
    count = data.draw(st.integers(1, layers))
    pivots = sorted(data.draw(st.sets(st.integers(0, max(layers - 2, 0)), max_size=min(layers - 1, 6))))
    levels = [
        "layerwise",
        f"even{count}",
        *([f"block{count}"] if count != 3 else []),
        *(["7#15"] if layers > 16 else []),
    ]
    levels += ["#".join(map(str, pivots))] if pivots and layers > 1 else []
    for level in levels:
        parts = parts_of_layers(level, layers)
        assert len(parts.layer_groups) == layers
        assert sum(parts.layer_shares) == layers
        assert all(share > 0 for share in parts.layer_shares)
        assert list(parts.names) == [str(index) for index in range(len(parts.names))]
        assert list(parts.layer_groups) == sorted(parts.layer_groups, key=int)
        if level.startswith("even"):
            assert max(parts.layer_shares) - min(parts.layer_shares) <= 1


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3), st.integers(3, 60))
def test_means_weigh_groups_alike_or_by_their_layers(ratios, layers):
    parts = parts_of_layers("even3", layers)
    mean, weighted = parts.means(ratios)
    per_layer = [ratios[int(group)] for group in parts.layer_groups]
    assert mean == pytest.approx(sum(ratios) / 3)
    assert weighted == pytest.approx(sum(per_layer) / layers)


def test_released_levels_keep_their_oddities_where_the_release_is_asked_for():
    assert released_layer_groups("block30", 12) == released_layer_groups("block3", 12)
    assert parts_of_layers("block30", 60).layer_shares == (2.0,) * 30
    assert parts_of_layers("block9", 5, released=True).names == ("8",)
    assert parts_of_layers("7#16", 26, released=True).layer_shares == (8, 9, 9)
    assert make_parts("linearwise", blocks_of("llama"), released=True).names == ()


@pytest.mark.parametrize(
    ("level", "message"),
    [
        ("20#10", "split points must rise.*10#20"),
        ("7#7", "split points must rise"),
        ("7#25", "split point 25 leaves nothing above it"),
        ("block27", "only 26 layers"),
        ("even27", "only 26 layers"),
        ("block0", "'0' is no number of parts"),
        ("block", "unknown parts 'block'"),
        ("layerwize", "did you mean 'layerwise'"),
        ("7#", "unknown parts"),
    ],
)
def test_levels_that_make_no_parts_are_refused(level, message):
    with pytest.raises(UserError, match=message):
        parts_of_layers(level, 26)


def test_parts_are_found_by_name_or_by_place():
    parts = parts_of_layers("lblock3", 26)
    assert [parts.find(word, "only") for word in ("input", "middle", "output", "1", HEAD)] == ["0", "1", "2", "1", HEAD]
    with pytest.raises(UserError, match=r"only=top is no part of parts=block2; it has 0, 1"):
        parts_of_layers("block2", 26).find("top", "only")


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_linear_layers_are_found_in_every_architecture(kind):
    expected = {"gpt_neox": 4, "gpt2": 4}.get(kind, 7)
    blocks = blocks_of(kind)
    modules = linear_modules(blocks)
    assert len(modules) == 4 * expected
    parts = make_parts("linearwise", blocks)
    assert parts.names == tuple(modules)
    assert sum(parts.layer_shares) == pytest.approx(4)
    assert parts.group(0, modules[0]) == modules[0]
    with pytest.raises(UserError, match="lies in no linear layer"):
        parts.group(0, None)


def placed(kind: str, rule: str, level: str = "even2", head: str | None = None, **overrides) -> dict[str, str | float]:
    blocks = blocks_of(kind, **overrides)
    found = tensor_rule(rule, head, make_parts(level, blocks), blocks)
    return {name: found.place(name) for name in blocks.model.state_dict()}


def test_the_three_rules_on_llama():
    everything = placed("llama", "released_ma")
    assert everything["model.embed_tokens.weight"] == "0"
    assert everything["model.layers.1.input_layernorm.weight"] == "0"
    assert everything["model.layers.2.input_layernorm.weight"] == "1"
    assert everything["model.norm.weight"] == BASE
    assert everything["lm_head.weight"] == BASE
    for rule, rest in (("linear_head_pre", PRE), ("linear_head_post", POST)):
        found = placed("llama", rule)
        assert found["model.layers.0.mlp.up_proj.weight"] == "0"
        assert found["model.layers.3.self_attn.o_proj.weight"] == "1"
        assert found["lm_head.weight"] == BASE
        others = {name: place for name, place in found.items() if "proj" not in name and name != "lm_head.weight"}
        assert set(others.values()) == {rest}
        assert len(others) == 2 * 4 + 2


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_biases_go_with_their_linear_layer_and_norms_do_not(kind):
    found = placed(kind, "linear_head_pre", "layerwise")
    for name, place in found.items():
        if "norm" in name or "ln_" in name:
            assert place == PRE, name
        elif name.endswith("bias"):
            assert place == found[name.removesuffix("bias") + "weight"] != PRE, name


@pytest.mark.parametrize("kind", ["gemma2", "gpt2"])
def test_a_tied_embedding_is_the_head(kind):
    blocks = blocks_of(kind)
    embedding = f"{blocks.input_embedding}.weight"
    assert all(placed(kind, rule)[embedding] == BASE for rule in TENSORS)
    parts = make_parts("even2", blocks)
    assert tensor_rule("linear_head_pre", None, parts, blocks, untied=True).place(embedding) == PRE


def test_the_head_has_the_base_ratio_its_own_or_none():
    assert placed("llama", "linear_head_pre", "lblock3")["lm_head.weight"] == HEAD
    assert placed("llama", "linear_head_pre", "lblock3", "base")["lm_head.weight"] == BASE
    assert placed("llama", "released_ma", "even2", "post")["lm_head.weight"] == POST
    blocks = blocks_of("llama")
    rule = tensor_rule("linear_head_pre", None, make_parts("lblock3", blocks), blocks, learned_head=False)
    assert rule.place("lm_head.weight") == BASE  # the release's merge ignores what was learned
    assert rule.ratio("lm_head.weight", {}, 0.2) == 0.2


def test_rules_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="parts=even2 learn no ratio for the head"):
        placed("llama", "linear_head_pre", head="learned")
    with pytest.raises(UserError, match="norms, for which parts=linearwise has no ratio"):
        placed("llama", "released_ma", "linearwise")


def test_parts_of_a_level_are_values():
    assert parts_of_layers("even2", 4) == Parts("even2", ("0", "1"), ("0", "0", "1", "1"))
