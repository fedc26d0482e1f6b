"""At p = 1 a training step of ours and one of TRL's DPO are the same, on the same batch."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from transformers import TrainingArguments
from trl import DPOConfig, DPOTrainer

from reproalign.common.config.data import DataConfig
from reproalign.common.config.model import LogprobsConfig
from reproalign.common.config.text import PairTextConfig
from reproalign.common.models.tiny import tiny_model
from reproalign.common.models.tiny_tokenizers import tiny_tokenizer
from reproalign.common.text.collate import PairCollator
from reproalign.common.text.pairs import tokenize_pairs
from reproalign.common.text.render import render_pairs
from reproalign.common.training.pairs import PairTrainer
from reproalign.common.training.reference import FrozenReference
from reproalign.mmpo.config import TargetConfig
from reproalign.mmpo.data import build_targets
from reproalign.mmpo.objective import MMPO

BETA = 0.3


def pairs() -> Dataset:
    texts = [
        ("two plus two<|im_end|>", " is four", " is a dog"),
        ("name a colour<|im_end|>", " blue", " the lazy fox and more"),
    ]
    return Dataset.from_list([{"prompt": p, "chosen": c, "rejected": r} for p, c, r in texts])


def models(kind: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A policy and a reference with other weights, so that the loss is not log 2."""
    return tiny_model(kind, seed=1).train(), tiny_model(kind, seed=2)


def rows(batch: dict[str, torch.Tensor]) -> list[list[list[int]]]:
    """The rows of a batch as (token, scored) pairs without padding, in no particular order."""
    return sorted(
        [[token, scored] for token, attended, scored in zip(*row, strict=True) if attended]
        for row in zip(*(batch[n].tolist() for n in ("input_ids", "attention_mask", "completion_mask")), strict=True)
    )


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "gemma"])
@pytest.mark.parametrize("implementation", ["chunked", "plain"])
def test_loss_and_gradients_equal_trls(tmp_path, kind, implementation):
    """R2 in hard-label DPO: loss and gradients of whole models are TRL's."""
    tokenizer = tiny_tokenizer()
    policy, reference = models(kind)
    trl = DPOTrainer(
        model=policy,
        ref_model=reference,
        args=DPOConfig(
            output_dir=str(tmp_path / "trl"), beta=BETA, use_cpu=True, bf16=False, report_to=[],
            gradient_checkpointing=False, disable_dropout=True, per_device_train_batch_size=2, max_length=None,
        ),
        train_dataset=pairs(),
        processing_class=tokenizer,
    )  # fmt: skip
    batch = next(iter(trl.get_train_dataloader()))
    trl_loss = trl.compute_loss(trl.model, dict(batch))
    trl_gradients = torch.autograd.grad(trl_loss, list(trl.model.parameters()))

    text, data = PairTextConfig(max_length=256, max_prompt_length=128), DataConfig()
    tokenized = tokenize_pairs(
        build_targets(render_pairs(pairs(), tokenizer, text, data), TargetConfig(gamma=None)), tokenizer, text, data
    )
    policy, reference = models(kind)
    ours = PairTrainer(
        model=policy,
        args=TrainingArguments(
            output_dir=str(tmp_path / "ours"), use_cpu=True, report_to=[], remove_unused_columns=False
        ),
        train_dataset=tokenized,
        data_collator=PairCollator(tokenizer.pad_token_id),
        objective=MMPO(beta=BETA),
        reference=FrozenReference(reference),
        logprobs=LogprobsConfig(implementation=implementation, chunk_size=3),
    )
    collated = ours.data_collator([tokenized[0], tokenized[1]])
    assert rows(collated) == rows(batch), "both tokenise to the same ids with the same boundary"
    # TRL shuffles; its very batch, with the one column it does not have.
    collated = {
        **{name: batch[name] for name in ("input_ids", "attention_mask", "completion_mask")},
        "p_chosen": torch.ones(2),
    }
    our_loss = ours.compute_loss(ours.model, collated)
    gradients = torch.autograd.grad(our_loss, list(ours.model.parameters()))

    assert abs(our_loss.item() - torch.log(torch.tensor(2.0)).item()) > 1e-3
    assert our_loss.item() == pytest.approx(trl_loss.item(), rel=1e-6, abs=1e-6)
    for mine, theirs in zip(gradients, trl_gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
