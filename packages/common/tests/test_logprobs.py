"""The chunked computation equals the oracle, in values and gradients, whatever the chunks and the padding."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from reproalign.common.config.model import LogprobsConfig
from reproalign.common.logprobs.chunked import chunked_token_logps
from reproalign.common.logprobs.chunks import default_chunk_size
from reproalign.common.logprobs.completions import completion_logps
from reproalign.common.logprobs.model import install_completion_logps, uninstall_completion_logps
from reproalign.common.models.tiny import TINY_MODELS, tiny_model
from reproalign.common.testing.oracle import token_logps

TOKENS, HIDDEN, VOCAB = 11, 5, 23


def head(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator, dtype=dtype)
    weight = torch.randn(VOCAB, HIDDEN, generator=generator, dtype=dtype)
    bias = torch.randn(VOCAB, generator=generator, dtype=dtype)
    targets = torch.randint(VOCAB, (TOKENS,), generator=generator)
    return hidden, weight, bias, targets


def oracle(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, softcap: float | None, scale: float
) -> Tensor:
    logits = scale * (hidden @ weight.T + (0 if bias is None else bias))
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)


@given(
    chunk_size=st.integers(1, TOKENS + 3),
    with_bias=st.booleans(),
    softcap=st.sampled_from([None, 0.7, 30.0]),
    scale=st.sampled_from([1.0, 0.0625, 3.0]),
    frozen_head=st.booleans(),
    seed=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_equals_the_oracle_in_values_and_gradients(chunk_size, with_bias, softcap, scale, frozen_head, seed):
    hidden, weight, bias, targets = head(seed)
    bias = bias if with_bias else None
    trained = [hidden] if frozen_head else [hidden, weight] + ([bias] if with_bias else [])
    for tensor in trained:
        tensor.requires_grad_()
    incoming = torch.linspace(-1, 2, TOKENS, dtype=torch.float64)

    expected = oracle(hidden, weight, targets, bias, softcap, scale)
    found = chunked_token_logps(hidden, weight, targets, bias=bias, softcap=softcap, scale=scale, chunk_size=chunk_size)

    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(
        torch.autograd.grad((found * incoming).sum(), trained),
        torch.autograd.grad((expected * incoming).sum(), trained),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("frozen_head", [True, False])
def test_gradcheck(softcap, frozen_head):
    hidden, weight, bias, targets = head()
    hidden.requires_grad_()
    if not frozen_head:
        weight.requires_grad_()
        bias.requires_grad_()

    def function(*inputs: Tensor) -> Tensor:
        return chunked_token_logps(inputs[0], inputs[1], targets, bias=inputs[2], softcap=softcap, chunk_size=4)

    assert torch.autograd.gradcheck(function, (hidden, weight, bias))


def test_no_tokens_give_no_logps_and_zero_gradients():
    hidden, weight, _, _ = head()
    hidden, weight = hidden[:0].requires_grad_(), weight.requires_grad_()
    logps = chunked_token_logps(hidden, weight, torch.zeros(0, dtype=torch.long))
    gradients = torch.autograd.grad(logps.sum(), [hidden, weight])
    assert logps.shape == (0,)
    assert not gradients[1].any()


def test_chunk_size_must_be_positive():
    hidden, weight, _, targets = head()
    with pytest.raises(ValueError, match="chunk_size must be at least 1"):
        chunked_token_logps(hidden, weight, targets, chunk_size=0)


def test_default_chunk_holds_the_stated_memory():
    assert default_chunk_size(49_152, torch.device("cpu")) * 49_152 * 4 <= 32 * 2**20
    assert default_chunk_size(10**9, torch.device("cpu")) == 16


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.bfloat16, 0.08)])
def test_lower_precision_stays_within_its_bound(dtype, bound):
    hidden, weight, _, targets = head()
    hidden, weight = hidden / HIDDEN**0.5, weight / HIDDEN**0.5
    exact = oracle(hidden, weight, targets, None, None, 1.0)
    found = chunked_token_logps(hidden.to(dtype), weight.to(dtype), targets, chunk_size=4)
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() < bound


def test_autocast_runs_the_products_in_bfloat16_and_the_statistics_in_float32():
    hidden, weight, _, targets = head(dtype=torch.float32)
    hidden.requires_grad_()
    weight.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logps = chunked_token_logps(hidden, weight, targets, chunk_size=4)
    logps.sum().backward()
    assert logps.dtype == torch.float32
    assert hidden.grad.dtype == weight.grad.dtype == torch.float32
    torch.testing.assert_close(logps, oracle(hidden, weight, targets, None, None, 1.0), rtol=0.05, atol=0.1)


class LargestTensor(TorchDispatchMode):
    """Remembers the largest floating tensor any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize("frozen_head", [True, False])
def test_no_more_than_a_chunk_of_logits_ever_exists(frozen_head):
    tokens, vocab, chunk = 64, 1000, 8
    hidden = torch.randn(tokens, HIDDEN, requires_grad=True)
    weight = torch.randn(vocab, HIDDEN, requires_grad=not frozen_head)
    with LargestTensor() as largest:
        chunked_token_logps(hidden, weight, torch.arange(tokens), chunk_size=chunk).sum().backward()
    assert largest.numel == chunk * vocab


def batch(rows: int = 4, length: int = 17) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(6, 500, (rows, length), generator=generator)
    attention = torch.ones_like(ids)
    attention[1, 12:] = 0
    completion = attention.clone()
    completion[:, :5] = 0
    completion[3] = 0  # a row without completion tokens
    return {"input_ids": ids, "attention_mask": attention, "completion_mask": completion}


def labels(inputs: dict[str, Tensor]) -> Tensor:
    return inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)


@pytest.mark.parametrize("kind", TINY_MODELS)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("way", ["chunked", "plain"])
def test_models_answer_completion_masks(kind, tied, way):
    """Ra-DPO R1: sums of log π(y_t|s_t) over a response and their gradients, from full logits."""
    model = tiny_model(kind, dtype=torch.float64, tie_word_embeddings=tied)
    inputs = batch()
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    parameters = list(model.parameters())
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    expected = token_logps(logits, labels(inputs)).sum(-1)
    expected_gradients = torch.autograd.grad((expected * weights).sum(), parameters)

    assert install_completion_logps(model, LogprobsConfig(implementation=way, chunk_size=7)) == way
    found = model(**inputs)

    torch.testing.assert_close(found.sums, expected, rtol=1e-10, atol=1e-10)
    assert found.counts.tolist() == [12, 7, 12, 0]
    assert found.means[3].isnan()
    assert found.per_token.shape == found.rows.shape == (31,)
    gradients = torch.autograd.grad((found.sums * weights).sum(), parameters)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_other_calls_are_answered_as_before_and_the_forward_can_be_given_back():
    model = tiny_model()
    inputs = batch()
    before = model(input_ids=inputs["input_ids"]).logits
    original = model.forward
    install_completion_logps(model)
    install_completion_logps(model, LogprobsConfig(chunk_size=3))
    assert torch.equal(model(input_ids=inputs["input_ids"]).logits, before)
    uninstall_completion_logps(model)
    assert model.forward == original


def test_one_call_leaves_a_trainers_forward_in_force():
    model, inputs = tiny_model(), batch()
    install_completion_logps(model, LogprobsConfig(chunk_size=3))
    forwards = [model.forward, model.get_output_embeddings().forward]
    asked = {name: inputs[name] for name in ("input_ids", "attention_mask", "completion_mask")}
    before = model(**asked, use_cache=False)["sums"]
    assert torch.allclose(completion_logps(model, **asked, implementation="plain")["sums"], before)
    assert [model.forward, model.get_output_embeddings().forward] == forwards
    assert torch.equal(model(**asked, use_cache=False)["sums"], before)
    uninstall_completion_logps(model)
    plain = model.forward
    completion_logps(model, **asked)
    assert model.forward == plain


def test_padding_order_and_chunk_size_do_not_matter():
    model = tiny_model(dtype=torch.float64)
    inputs = batch()
    install_completion_logps(model, LogprobsConfig(chunk_size=1))
    expected = model(**inputs).sums
    padded = {name: torch.nn.functional.pad(value, (0, 9)) for name, value in inputs.items()}
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(model(**padded).sums, expected, rtol=1e-10, atol=1e-10)
    reordered = model(**{name: value[order] for name, value in inputs.items()}).sums
    torch.testing.assert_close(reordered, expected[order], rtol=1e-10, atol=1e-10)
    install_completion_logps(model, LogprobsConfig(chunk_size=1000))
    torch.testing.assert_close(model(**inputs).sums, expected, rtol=1e-10, atol=1e-10)


def test_gradient_checkpointing_gives_the_same_gradients():
    inputs = batch()
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model(dtype=torch.float64).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        install_completion_logps(model)
        gradients.append(torch.autograd.grad(model(**inputs, use_cache=False).sums.sum(), list(model.parameters())))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("targets", "way"),
    [(["q_proj", "v_proj"], "chunked"), (["q_proj", "lm_head"], "module")],
    ids=["attention", "head"],
)
def test_lora_takes_the_right_way(targets, way, caplog):
    model = get_peft_model(
        tiny_model(dtype=torch.float64), LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM")
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    inputs = batch()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    expected = token_logps(logits, labels(inputs)).sum(-1)
    expected_gradients = torch.autograd.grad(expected.sum(), trained)
    with caplog.at_level(logging.WARNING):
        assert install_completion_logps(model, LogprobsConfig(chunk_size=5)) == way
    assert bool(caplog.records) == (way == "module")
    found = model(**inputs)
    torch.testing.assert_close(found.sums, expected, rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(torch.autograd.grad(found.sums.sum(), trained), expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_a_head_that_is_not_understood_is_noticed(caplog):
    model = tiny_model()
    original = model.forward

    def doubled(*args, **kwargs):
        output = original(*args, **kwargs)
        output.logits = output.logits * 2
        return output

    model.forward = doubled
    with caplog.at_level(logging.WARNING):
        assert install_completion_logps(model) == "plain"
    assert "not known here" in caplog.text
