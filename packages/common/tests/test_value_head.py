"""Values beside log-probs: brute force, padding, saved folders, adapters, and clipping by two norms."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from reproalign.common.config.model import LogprobsConfig
from reproalign.common.errors import UserError
from reproalign.common.logprobs.model import install_completion_logps
from reproalign.common.logprobs.values import install_completion_values
from reproalign.common.models.tiny import tiny_model
from reproalign.common.models.value_head import DetachedValueHead, attach_value_head, has_value_head
from reproalign.common.testing.checkpoints import random_config
from reproalign.common.training.value_head import clip_value_head_separately

LENGTHS, STARTS = (9, 5, 7), (3, 2, 6)


def valued(kind: str = "llama", implementation: str = "chunked", **overrides) -> nn.Module:
    model = tiny_model(kind, dtype=torch.float64, **overrides)
    torch.manual_seed(4)
    attach_value_head(model)
    install_completion_values(model, LogprobsConfig(implementation=implementation))
    return model


def batch(width: int = 9, order: tuple[int, ...] = (0, 1, 2)) -> dict[str, Tensor]:
    ids = torch.randint(6, 500, (3, 9), generator=torch.Generator().manual_seed(3))
    ids = nn.functional.pad(ids, (0, width - 9))[list(order)]
    positions = torch.arange(width)
    attention = positions < torch.tensor([LENGTHS[row] for row in order])[:, None]
    completion = attention & (positions >= torch.tensor([STARTS[row] for row in order])[:, None])
    return {
        "input_ids": ids.masked_fill(~attention, 0),
        "attention_mask": attention.long(),
        "completion_mask": completion.long(),
    }


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "gemma"])
@pytest.mark.parametrize("implementation", ["chunked", "plain"])
def test_values_are_of_the_states_before_the_tokens(kind, implementation):
    model = valued(kind, implementation)
    output = model(**batch(), use_cache=False)
    expected, logps = [], []
    for row in range(3):
        ids = batch()["input_ids"][row : row + 1, : LENGTHS[row]]
        plain = model(input_ids=ids, output_hidden_states=True, use_cache=False)
        states = plain.hidden_states[-1][0]
        place = slice(STARTS[row] - 1, LENGTHS[row] - 1)
        expected.append(states[place] @ model.v_head.summary.weight[0] + model.v_head.summary.bias)
        logps.append(plain.logits[0].log_softmax(-1)[place].gather(1, ids[0, STARTS[row] :, None])[:, 0])
    torch.testing.assert_close(output["state_values"], torch.cat(expected))
    assert len(tree_leaves(output)) == 6  # sharding wrappers look for the tensors of an output
    # Gemma's norms and soft-capping compute in float32 in any case.
    torch.testing.assert_close(output["per_token"], torch.cat(logps), atol=1e-5, rtol=1e-5)
    values = output["state_values"].sum()
    gradient = torch.autograd.grad(values, [model.v_head.summary.bias, model.get_input_embeddings().weight])
    assert gradient[0].item() == len(output["state_values"])
    assert gradient[1].abs().sum() > 0  # the trunk learns from the values too


def test_padding_and_order_change_nothing():
    model = valued()
    plain, moved = model(**batch(), use_cache=False), model(**batch(14, (2, 0, 1)), use_cache=False)
    rows = [plain["state_values"][plain["rows"] == row] for row in (2, 0, 1)]
    torch.testing.assert_close(moved["state_values"], torch.cat(rows))


def test_no_logits_are_made():
    """The vocabulary's logits are made nowhere but in chunks inside the head's own function."""
    model = valued()
    calls = []
    original = nn.functional.linear

    def linear(*args, **kwargs):
        output = original(*args, **kwargs)
        calls.append(output.shape[-1])
        return output

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "linear", linear)
        model(**batch(), use_cache=False)
        assert calls
        assert 512 not in calls
        model(input_ids=batch()["input_ids"])
        assert 512 in calls


def test_a_copy_uses_its_own_head_and_the_original_answers_as_before():
    model = valued()
    before = model(**batch(), use_cache=False)["state_values"]
    other = copy.deepcopy(model)
    nn.init.zeros_(other.v_head.summary.weight)
    nn.init.zeros_(other.v_head.summary.bias)
    assert other(**batch(), use_cache=False)["state_values"].abs().max() == 0
    torch.testing.assert_close(model(**batch(), use_cache=False)["state_values"], before)
    install_completion_logps(model)
    assert "state_values" not in model(**batch(), use_cache=False)
    assert has_value_head(model)
    assert not has_value_head(tiny_model())


def test_saved_folders_are_read_by_transformers_and_by_us(tmp_path):
    model = valued()
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert {name: tuple(value.shape) for name, value in stored.items() if name.startswith("v_head")} == {
        "v_head.summary.weight": (1, 32),
        "v_head.summary.bias": (1,),
    }
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    inputs = {"input_ids": batch()["input_ids"]}
    torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, atol=1e-12, rtol=0)
    attach_value_head(loaded, tmp_path)
    install_completion_values(loaded)
    found, expected = loaded(**batch(), use_cache=False), model(**batch(), use_cache=False)
    torch.testing.assert_close(found["state_values"], expected["state_values"], atol=1e-12, rtol=0)


def test_a_folder_without_a_head_is_named(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"holds no value head of this model \(its tensors: none\)"):
        attach_value_head(tiny_model(), tmp_path)
    valued(hidden_size=16).save_pretrained(tmp_path / "smaller")
    with pytest.raises(UserError, match="holds no value head of this model"):
        attach_value_head(tiny_model(), tmp_path / "smaller")


def test_an_adapters_head_is_trained_and_saved_with_it(tmp_path):
    torch.manual_seed(5)
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(tiny_model(), lora)
    attach_value_head(model)
    install_completion_values(model)
    values = model(**batch(), use_cache=False)["state_values"]
    values.sum().backward()
    trained = [name for name, value in model.named_parameters() if value.grad is not None]
    assert sorted({"v_head" if "v_head" in name else "lora" for name in trained}) == ["lora", "v_head"]
    model.save_pretrained(tmp_path)
    base = tiny_model()
    attach_value_head(base)
    again = PeftModel.from_pretrained(base, tmp_path)
    install_completion_values(again)
    torch.testing.assert_close(again(**batch(), use_cache=False)["state_values"], values)
    other = get_peft_model(tiny_model(), lora)
    attach_value_head(other, tmp_path)
    assert has_value_head(other)
    torch.testing.assert_close(
        other.get_base_model().v_head.summary.weight, model.get_base_model().v_head.summary.weight
    )


class Summed(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        output = model(**inputs, use_cache=False)
        return 100 * output["state_values"].sum() - output["sums"].sum()


def summed(folder, model: nn.Module, **arguments) -> Trainer:
    return Summed(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder),
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            logging_steps=1,
            lr_scheduler_type="constant",
            per_device_train_batch_size=3,
            **arguments,
        ),
        train_dataset=[{name: value[row].tolist() for name, value in batch().items()} for row in range(3)],
        data_collator=lambda rows: {name: torch.tensor([row[name] for row in rows]) for name in rows[0]},
    )


def step(folder, *, separately: float | None) -> tuple[dict[str, Tensor], Trainer]:
    """One step of SGD at learning rate 1: what was subtracted is the clipped gradient."""
    model = valued()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    options = {"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 2.0, "max_steps": 1, "save_strategy": "no"}
    trainer = summed(folder, model, **options)
    if separately is not None:
        clip_value_head_separately(trainer, separately)
    trainer.train()
    return {name: before[name] - value.detach() for name, value in model.named_parameters()}, trainer


def norm(parts: dict[str, Tensor], of_head: bool) -> float:
    chosen = [value.flatten() for name, value in parts.items() if name.startswith("v_head") is of_head]
    return torch.cat(chosen).norm().item()


def test_head_and_model_are_clipped_by_norms_of_their_own(tmp_path):
    together, _ = step(tmp_path, separately=None)
    assert norm(together, True) ** 2 + norm(together, False) ** 2 == pytest.approx(4, rel=1e-4)
    apart, trainer = step(tmp_path, separately=0.1)
    assert norm(apart, True) == pytest.approx(0.1, rel=1e-4)
    assert norm(apart, False) == pytest.approx(2, rel=1e-4)
    assert trainer.state.log_history[0]["grad_norm"] > 2


def test_norms_that_cannot_be_kept_are_refused():
    trainer = Trainer.__new__(Trainer)
    trainer.accelerator = SimpleNamespace(distributed_type=DistributedType.DEEPSPEED)
    with pytest.raises(UserError, match="DeepSpeed"):
        clip_value_head_separately(trainer, 0.1)


def test_a_resumed_run_has_its_head_back(tmp_path):
    whole, resumed = valued(), valued()
    options = {"learning_rate": 1e-3, "max_steps": 2, "save_steps": 1}
    summed(tmp_path, whole, **options).train()
    nn.init.zeros_(resumed.v_head.summary.weight)
    summed(tmp_path, resumed, **options).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    torch.testing.assert_close(resumed.v_head.summary.weight, whole.v_head.summary.weight, atol=1e-9, rtol=0)


def test_left_padded_prompts_are_answered_as_without_padding():
    """``generate`` reads from a forward's signature that it takes positions, which GPT-2's embeddings need."""
    model = AutoModelForCausalLM.from_config(random_config("gpt2")).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    attach_value_head(model)
    install_completion_values(model)
    ids, mask = torch.tensor([[0, 0, 0, 5, 6, 7]]), torch.tensor([[0, 0, 0, 1, 1, 1]])
    options = {"max_new_tokens": 1, "pad_token_id": 0, "return_dict_in_generate": True, "output_logits": True}
    alone = model.generate(input_ids=ids[:, 3:], attention_mask=mask[:, 3:], **options)
    padded = model.generate(input_ids=ids, attention_mask=mask, **options)
    torch.testing.assert_close(padded.logits, alone.logits)


def test_the_critic_of_a_detached_head_leaves_the_language_model_alone():
    model = tiny_model("llama")
    attach_value_head(model, head=DetachedValueHead)
    install_completion_values(model)
    model(**batch()).state_values.square().sum().backward()
    moved = {name for name, value in model.named_parameters() if value.grad is not None and value.grad.abs().max() > 0}
    assert moved == {f"v_head.layers.{place}.{part}" for place in (0, 3, 6) for part in ("weight", "bias")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_detached_head_computes_in_float32_whatever_the_states_are(dtype):
    torch.manual_seed(0)
    head, states = DetachedValueHead(8, dropout=0.0), torch.randn(2, 3, 8).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = head(states)
    first, _, _, second, _, _, last = head.layers
    expected = last(torch.relu(second(torch.relu(first(states.float()))))).squeeze(-1)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, expected, rtol=0, atol=0)


def test_a_detached_head_drops_while_it_trains():
    torch.manual_seed(0)
    head, states = DetachedValueHead(8), torch.randn(4, 8)
    assert not torch.equal(head(states), head(states))
    head.eval()
    torch.testing.assert_close(head(states), head(states), rtol=0, atol=0)
