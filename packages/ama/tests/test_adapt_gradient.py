"""The ratios' gradient, layer by layer, is autograd's over an explicit merge, to 1e-10 in float64."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from reproalign.ama.adapt.merged import MERGED, PAIR, RatioModel
from reproalign.ama.adapt.pair import merge, merge_released, open_pair
from reproalign.ama.parts import make_parts
from reproalign.ama.tensors import BASE, tensor_rule
from reproalign.common.models.tiny import tiny_model
from reproalign.common.models.tiny_tokenizers import tiny_tokenizer

SHAPE = {"vocab_size": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
BASE_RATIO = 0.3


def make(kind: str, seed: int, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    if kind in ("llama", "gpt_neox", "gemma"):
        return tiny_model(kind, seed=seed, dtype=dtype, num_hidden_layers=4)
    if kind == "tied":
        return tiny_model("llama", seed=seed, dtype=dtype, num_hidden_layers=4, tie_word_embeddings=True)
    torch.manual_seed(seed)
    common: dict[str, Any] = {**SHAPE, "num_hidden_layers": 4, "num_attention_heads": 4, "hidden_size": 32}
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(**SHAPE, n_layer=4, n_head=4, n_embd=32, initializer_range=0.1))
    elif kind == "qwen2":  # biases in the attention alone
        model = Qwen2ForCausalLM(Qwen2Config(**common, num_key_value_heads=2, intermediate_size=48))
    else:
        model = MixtralForCausalLM(
            MixtralConfig(**common, num_key_value_heads=2, intermediate_size=48, num_local_experts=3)
        )
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.to(dtype)


def load(path: Path) -> PreTrainedModel:
    network: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype="auto").eval()
    if network.config.model_type == "mixtral":
        network.set_experts_implementation("eager")  # others have no float64
    return network


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, tuple[Path, Path]] = {}

    def get(kind: str, dtype: torch.dtype = torch.float64) -> tuple[Path, Path]:
        key = f"{kind}-{dtype}"
        if key not in made:
            root = tmp_path_factory.mktemp(kind)
            for seed, name in enumerate(("pre", "post")):
                make(kind, seed, dtype).save_pretrained(root / name)
                tiny_tokenizer().save_pretrained(root / name)
            made[key] = (root / "pre", root / "post")
        return made[key]

    return get


@contextmanager
def opened(
    paths: tuple[Path, Path], level: str, rule: str, head: str | None = None, **options: Any
) -> Iterator[tuple[RatioModel, dict[str, Tensor], dict[str, Tensor]]]:
    """A merged model at different ratios for the groups, and the parameters of its parents."""
    pre, post = (load(path) for path in paths)
    parents = [{name: value.detach().clone() for name, value in model.named_parameters()} for model in (pre, post)]
    with open_pair(*map(str, paths)) as pair:
        parts = make_parts(level, pair.blocks)
        chosen = tensor_rule(rule, head, parts, pair.blocks)
        located = pair.locate(post, chosen)
        missing = [tensors.parameter for tensors in located if not tensors.names]
        pair.keep(pre, missing)
        pair.keep(post, missing)
        ratios = dict(zip(parts.names, torch.linspace(0.1, 0.9, len(parts.names)).tolist(), strict=True))
        model = RatioModel(post, pair, chosen, ratios, base=BASE_RATIO, **options)
        model.places = {tensors.parameter: tensors.place for tensors in located}  # type: ignore[attr-defined]
        yield model, *parents


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 500, (2, 17), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 13:] = 0
    scored = mask.clone()
    scored[:, :5] = 0
    return {"input_ids": ids, "attention_mask": mask, "completion_mask": scored}


def loss(answer: Any) -> Tensor:
    return -answer.sums.sum() / 20


def explicit(
    kind_paths: tuple[Path, Path], model: RatioModel, pre: Mapping[str, Tensor], post: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Loss and gradient by autograd through a weight rebuilt from both parents."""
    network = load(kind_paths[0])
    ratios = model.ratios.clone().requires_grad_()
    places: dict[str, str | float] = model.places  # type: ignore[attr-defined]
    merged = {}
    for name, place in places.items():
        share: Any = place
        if isinstance(place, str):
            share = ratios[model.names.index(place)] if place in model.names else BASE_RATIO
        # RMS norms compute in float32 whatever the model does, so one bit of a weight shows up at 1e-8: the value is
        # the merge's, bit for bit, and the derivative the formula's.
        number = float(share.detach()) if isinstance(share, Tensor) else share
        merged[name] = merge(pre[name], post[name], number) + (share - number) * (pre[name] - post[name])
    given = batch()
    scored = given.pop("completion_mask")[:, 1:].bool()
    logits = functional_call(network, merged, kwargs=given, tie_weights=True).logits
    logps = logits[:, :-1].log_softmax(-1).gather(2, given["input_ids"][:, 1:, None]).squeeze(2)
    total = -(logps * scored).sum() / 20
    (gradient,) = torch.autograd.grad(total, ratios)
    return total.detach(), gradient


CASES = [
    *(("llama", level, "released_ma") for level in ("block3", "block2", "even3", "layerwise", "lblock3", "1#2")),
    *(("llama", level, "linear_head_post") for level in ("block2", "lblock3", "linearwise")),
    *(("llama", level, "linear_head_pre") for level in ("layerwise", "linearwise")),
    *((kind, "even2", rule) for kind in ("tied", "gpt2", "gpt_neox", "gemma", "qwen2", "mixtral")
      for rule in ("linear_head_post", "released_ma")),
    ("tied", "lblock3", "released_ma"),
    ("gpt2", "layerwise", "linear_head_pre"),
    ("qwen2", "linearwise", "linear_head_pre"),
]  # fmt: skip


@pytest.mark.parametrize("held", [MERGED, PAIR])
@pytest.mark.parametrize(("kind", "level", "rule"), CASES)
def test_equals_autograd_over_an_explicit_merge(folders: Any, kind: str, level: str, rule: str, held: str) -> None:
    """R4: ∂L/∂α of every part, against autograd through merged weights."""
    with opened(folders(kind), level, rule, held=held) as (model, pre, post):
        value = loss(model.network(**batch()))
        value.backward()
        expected_value, expected = explicit(folders(kind), model, pre, post)
        assert value.item() == pytest.approx(expected_value.item(), abs=1e-12)
        gradient = model.take_gradient()
        assert (gradient - expected).abs().max() < 1e-10 * max(1, expected.abs().max())
        assert expected.abs().min() > 1e-6  # every group counts
        assert not any(parameter.grad is not None for parameter in model.network.parameters())
        assert model.take_gradient().eq(0).all()


def test_the_base_ratio_may_be_one_more_group(folders: Any) -> None:
    with opened(folders("llama"), "even2", "linear_head_pre", with_base=True) as (model, pre, post):
        assert model.names[-1] == BASE
        loss(model.network(**batch())).backward()
        _, expected = explicit(folders("llama"), model, pre, post)
        assert (model.take_gradient() - expected).abs().max() < 1e-10


@pytest.mark.parametrize("held", [MERGED, PAIR])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moving_the_ratios_gives_the_bits_of_a_new_merge(folders: Any, dtype: torch.dtype, held: str) -> None:
    paths = folders("llama", dtype)
    with opened(paths, "block2", "released_ma", held=held) as (model, pre, post):
        for step in range(50):  # adding to 16-bit weights what a step changes would leave them where they are
            model.set_ratios([0.2 + 1e-6 * step, 0.4 - 1e-6 * step])
        wide = torch.float32
        for entry in model.learned:
            name, ratio = entry.tensors.parameter, float(model.ratios[entry.group])
            fresh = (pre[name].to(wide) * ratio).add_(post[name].to(wide), alpha=1 - ratio).to(dtype)
            made = held == PAIR and entry.linear
            weight = model.blend(entry.group).weight(entry.first, entry.second) if made else entry.first
            assert torch.equal(weight, fresh), name


@pytest.mark.parametrize("merging", [merge, merge_released])
def test_a_pair_computes_what_merged_weights_compute(folders: Any, merging: Any) -> None:
    paths, found = folders("llama", torch.bfloat16), []
    for held in (MERGED, PAIR):
        with opened(paths, "block2", "released_ma", held=held, merge=merging) as (model, *_):
            model.set_ratios([0.21, 0.43])
            value = loss(model.network(**batch()))
            value.backward()
            found.append([value.item(), *model.take_gradient().tolist()])
    assert found[0] == found[1]


def test_a_pair_reads_nothing_when_the_ratios_move(folders: Any) -> None:
    with opened(folders("llama"), "block2", "released_ma", held=PAIR) as (model, pre, post):
        pass  # the files are closed now
    model.set_ratios([0.7, 0.2])
    loss(model.network(**batch())).backward()
    _, expected = explicit(folders("llama"), model, pre, post)
    assert (model.take_gradient() - expected).abs().max() < 1e-10 * max(1, expected.abs().max())


def test_released_merge_rounds_every_step() -> None:
    pre, post = torch.randn(2, 1000).bfloat16()
    share = torch.tensor(0.2012345)
    parts = [(value.float() * factor).bfloat16() for value, factor in ((pre, share), (post, 1 - share))]
    expected = (parts[0].float() + parts[1].float()).bfloat16()
    assert torch.equal(merge_released(pre, post, float(share)), expected)


@pytest.mark.parametrize(("held", "rule"), [(MERGED, "released_ma"), (PAIR, "linear_head_pre")])
def test_two_models_are_held(folders: Any, held: str, rule: str) -> None:
    with opened(folders("llama"), "block2", rule, held=held) as (model, pre, _):
        count = sum(parameter.numel() for parameter in model.network.parameters())
        assert count <= 2 * sum(value.numel() for value in pre.values())
