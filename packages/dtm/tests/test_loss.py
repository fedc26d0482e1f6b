"""Both averages of the loss, against a plain computation in float64, and what each does not depend on."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reproalign.common.config.model import LogprobsConfig
from reproalign.common.logprobs.model import install_completion_logps
from reproalign.common.models.tiny import tiny_model
from reproalign.common.text.collate import IGNORED, RowCollator
from reproalign.common.training.token_average import micro_batch_mean, token_mean, token_share
from reproalign.dtm.train.trainer import SupervisedTrainer

LENGTHS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=2, max_size=6)  # (prompt, response)


def rows(lengths) -> list[dict]:
    generator = torch.Generator().manual_seed(sum(map(sum, lengths)))
    made = []
    for prompt, response in lengths:
        ids = torch.randint(6, 300, (prompt + response,), generator=generator).tolist()
        made.append({"input_ids": ids, "labels": [IGNORED] * prompt + ids[prompt:]})
    return made


def losses_of(model, batch) -> torch.Tensor:
    supervised = batch["labels"] != IGNORED
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return -model(**inputs, completion_mask=supervised, use_cache=False)["per_token"]


def oracle(model, row) -> list[float]:
    """Losses of one row's supervised tokens, from full logits."""
    logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0]
    logps = logits.log_softmax(1)
    places = [place for place, label in enumerate(row["labels"]) if label != IGNORED and place]
    return [-float(logps[place - 1, row["input_ids"][place]]) for place in places]


@settings(max_examples=30)
@given(LENGTHS)
def test_both_averages_equal_a_plain_computation(lengths):
    """R2 as a mean over tokens, over the whole step's and over a micro-batch's, from full logits."""
    model = tiny_model(dtype=torch.float64).requires_grad_(False)
    expected = [oracle(model, row) for row in rows(lengths)]
    install_completion_logps(model)
    found = [losses_of(model, RowCollator(0)([row])) for row in rows(lengths)]
    mean = sum(float(micro_batch_mean(losses)) for losses in found) / len(found)
    assert mean == pytest.approx(sum(sum(row) / len(row) for row in expected) / len(expected), abs=1e-12)
    tokens = sum(map(len, expected))
    share = token_share(tokens, len(found), 1)
    total = sum(float(token_mean(losses, share)) for losses in found) / len(found)
    assert total == pytest.approx(sum(map(sum, expected)) / tokens, abs=1e-12)


@settings(max_examples=30)
@given(LENGTHS, st.integers(1, 3), st.sampled_from(["right", "left"]), st.sampled_from([1, 8, 32]))
def test_the_token_mean_does_not_depend_on_padding_or_on_how_a_step_is_cut(lengths, size, side, multiple):
    model = tiny_model(dtype=torch.float64)
    install_completion_logps(model)
    given_rows = rows(lengths)

    def step(cut: int, collate: RowCollator) -> tuple[float, torch.Tensor]:
        model.zero_grad()
        batches = [collate(given_rows[start : start + cut]) for start in range(0, len(given_rows), cut)]
        tokens = sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in batches)
        share = token_share(tokens, len(batches), 1)
        total = sum(token_mean(losses_of(model, batch), share) for batch in batches) / len(batches)
        total.backward()
        return float(total), model.model.layers[0].mlp.up_proj.weight.grad.clone()

    whole, cut = step(len(given_rows), RowCollator(0)), step(size, RowCollator(0, side, multiple))
    assert cut[0] == pytest.approx(whole[0], abs=1e-9 if side == "right" else 1e-6)
    torch.testing.assert_close(cut[1], whole[1], atol=1e-9 if side == "right" else 1e-6, rtol=1e-6)


def test_with_one_row_a_micro_batch_every_row_weighs_the_same():
    short, long = torch.tensor([4.0]), torch.tensor([1.0, 1.0, 1.0])
    assert (micro_batch_mean(short) + micro_batch_mean(long)) / 2 == 2.5
    share = token_share(4, 2, 1)
    assert (token_mean(short, share) + token_mean(long, share)) / 2 == 7 / 4


def test_a_micro_batch_without_supervised_tokens_has_no_loss_and_no_gradient():
    model = tiny_model()
    install_completion_logps(model)
    batch = RowCollator(0)([{"input_ids": [5, 6, 7], "labels": [IGNORED] * 3}])
    loss = micro_batch_mean(losses_of(model, batch))
    assert math.isnan(loss)
    loss.backward()
    reached = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert reached
    assert all(bool((gradient == 0).all()) for gradient in reached)
    assert math.isnan(token_share(0, 1, 1))


@pytest.mark.parametrize("batch_measures", [False, True])
def test_evaluation_does_not_need_all_logits_and_equals_them(batch_measures, tmp_path):
    from datasets import Dataset
    from transformers import TrainingArguments

    model = tiny_model()
    given_rows = rows([(3, 5), (2, 9), (7, 2), (1, 4), (4, 4)])
    arguments = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, per_device_eval_batch_size=2, report_to=[], remove_unused_columns=False
    )
    logits = {
        index: model(input_ids=torch.tensor([row["input_ids"]])).logits[0] for index, row in enumerate(given_rows)
    }
    trainer = SupervisedTrainer(
        normalisation="token_mean",
        regularizer=None,
        batch_measures=batch_measures,
        logprobs=LogprobsConfig(chunk_size=3),
        model=model,
        args=arguments,
        eval_dataset=Dataset.from_list(given_rows),
        data_collator=RowCollator(0),
    )
    found = trainer.evaluate()
    losses = [oracle(model, row) for row in given_rows]
    hits = sum(
        int(logits[index][place - 1].argmax()) == row["input_ids"][place]
        for index, row in enumerate(given_rows)
        for place, label in enumerate(row["labels"])
        if label != IGNORED and place
    )
    if not batch_measures:
        assert found["eval_loss"] == pytest.approx(sum(map(sum, losses)) / sum(map(len, losses)), abs=1e-5)
        assert found["eval_accuracy"] == pytest.approx(hits / sum(map(len, losses)))
    else:
        batches = [[0, 1], [2, 3], [4]]
        means = [
            sum(sum(losses[i]) for i in part) / sum(len(losses[i]) for i in part) for part in batches for _ in part
        ]
        assert found["eval_loss"] == pytest.approx(sum(means) / 5, abs=1e-5)
        # Widths 16, 16, 8: the two positions of the last batch's padding after the shift are 16 - 1 - 8 a row.
        assert found["eval_accuracy"] == pytest.approx((hits + 7) / (5 * 15))
    assert found["eval_perplexity"] == pytest.approx(math.exp(found["eval_loss"]))
