"""Supervised fine-tuning with ``trl.SFTTrainer``: on whole dialogues, or on responses alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional
from transformers import (
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import SFTTrainer

from reproalign.common.config.run import BaseRunConfig
from reproalign.common.data.records import Message
from reproalign.common.errors import UserError, first_line
from reproalign.common.files import write_json
from reproalign.common.models.identify import used_weights
from reproalign.common.models.load import load_causal_lm
from reproalign.common.records import Run
from reproalign.common.text.collate import IGNORED
from reproalign.common.text.prompts import encode_prompt, prompt_text
from reproalign.common.text.shown import used_rows
from reproalign.common.text.templates import SEPARATORS, render_completion
from reproalign.common.text.tokenize import Encoder, TokenRules, add_special_tokens, split
from reproalign.common.training.fit import fit
from reproalign.common.training.preview import preview

_TOKENS = "tokens.json"  # in a checkpoint


class _CountedTrainer(Trainer):
    """Counts tokens on from those that were trained on before a resumption, which ``trl`` does not know of."""

    tokens_before = 0.0
    tokens = 0.0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        for name in ("num_tokens", "eval_num_tokens"):
            if name in logs:
                logs[name] = self.tokens = logs[name] + self.tokens_before
        super().log(logs, start_time)


class FineTuner(SFTTrainer, _CountedTrainer):
    """``trl.SFTTrainer`` that logs the same numbers whether it was interrupted or not."""

    def save_state(self, checkpoint: Path) -> None:  # type: ignore[override]
        """Write the number of tokens into a checkpoint."""
        if self.is_world_process_zero():
            write_json(checkpoint / _TOKENS, {"tokens": self.tokens})

    def load_state(self, checkpoint: Path) -> None:
        """Read it back; a checkpoint of an earlier version has none."""
        if (checkpoint / _TOKENS).is_file():
            self.tokens_before = json.loads((checkpoint / _TOKENS).read_text(encoding="utf-8"))["tokens"]


class _LogAtSaves(TrainerCallback):
    """Logs where a checkpoint is written: the means that ``trl`` logs begin anew there when a run is resumed."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        control.should_log = control.should_log or control.should_save

    on_epoch_end = on_step_end


def fine_tune(
    config: BaseRunConfig,
    run: Run,
    arguments: TrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    train: Dataset,
    evaluation: Dataset | None,
    *,
    loss_mean: str = "tokens",
) -> FineTuner:
    """Train, save the model, and record ``eval_loss`` (nats per token) if there is something held out.

    Args:
        config: of the run.
        run: the open record.
        arguments: an ``SFTConfig``.
        tokenizer: of the model, checked.
        train: rows of ``messages``, all of whose tokens are trained on, or of ``input_ids`` and ``labels``.
        evaluation: likewise.
        loss_mean: what a step's loss is the mean of: all its ``tokens``, or its ``examples``, each of which counts the
            mean over its own tokens; that needs one example per device at a time (:func:`check_loss_mean`).

    Raises:
        UserError: for arguments that trl refuses beside this model or these rows.
    """
    preview(run, config, arguments, train, evaluation)
    used_weights(run, "start", config.model.name, config.model.revision)
    model = load_causal_lm(config.model)
    try:
        trainer = FineTuner(
            model=model,
            args=arguments,  # type: ignore[arg-type]
            train_dataset=train,
            eval_dataset=evaluation,
            processing_class=tokenizer,
        )
    except (ValueError, TypeError) as error:
        raise UserError(f"trainer.* is refused by trl.SFTTrainer: {first_line(error)}") from error
    if loss_mean == "examples":
        trainer.model_accepts_loss_kwargs = False  # else each micro-batch is divided by the tokens of the whole step
    used_rows(run, tokenizer, trainer.train_dataset)
    trainer.add_callback(_LogAtSaves())
    fit(trainer, run, config, tokenizer)
    if evaluation is not None:
        run.set_metrics({"eval_loss": trainer.evaluate()["eval_loss"]})
    return trainer


def check_loss_mean(loss_mean: str, trainer: Mapping[str, Any]) -> None:
    """Refuse a mean that the batches cannot give.

    Raises:
        UserError: for one over examples where a device has several at a time.
    """
    if loss_mean == "examples" and trainer.get("per_device_train_batch_size", 8) != 1:
        raise UserError(
            "loss_mean=examples needs trainer.per_device_train_batch_size=1, since a device's tokens are averaged "
            "together; raise trainer.gradient_accumulation_steps instead"
        )


def tokenize_responses(
    dialogues: Sequence[list[Message]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    layout: str,
    max_length: int,
    response_separator: str = "space",
) -> Dataset:
    """Tokenise dialogues whose last turn is to be learned; ``labels`` of all that is before it are ignored.

    The prompt is tokenised as it is when the model is asked (:mod:`reproalign.common.text.prompts`). An
    over-long dialogue loses the beginning of its prompt; a response that does not fit by itself is cut at its end.

    Args:
        dialogues: turns, the last one the assistant's.
        tokenizer: of the model.
        layout: ``chat``, ``transcript`` or ``lmflow``.
        max_length: tokens of prompt and response.
        response_separator: in a transcript, between the answer's header and the response: ``space`` or ``none``.
    """
    separator = SEPARATORS[response_separator]
    make = partial(_row, encoder=Encoder(tokenizer), layout=layout, max_length=max_length, separator=separator)
    return Dataset.from_list([make(dialogue) for dialogue in dialogues])


@torch.no_grad()
def answer_losses(trainer: SFTTrainer) -> list[float]:
    """Return the mean loss of each held-out row, in nats per token of its response; all processes take part."""
    model: Any = trainer.model_wrapped
    model.eval()
    losses: list[float] = []
    for batch in trainer.get_eval_dataloader():
        answered = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
        gathered: Tensor = trainer.accelerator.gather_for_metrics(mean_losses(answered.logits, batch["labels"]))
        losses += gathered.tolist()
    return losses


def mean_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy per token that is not ignored, (rows,), of logits (rows, seq, vocabulary)."""
    rows = zip(logits[:, :-1], labels[:, 1:], strict=True)  # one by one: each needs its logits again in float32
    return torch.stack([functional.cross_entropy(row.float(), target, ignore_index=IGNORED) for row, target in rows])


def _row(
    dialogue: list[Message], encoder: Encoder, layout: str, max_length: int, separator: str
) -> Mapping[str, list[int]]:
    tokenizer = encoder.tokenizer
    prompt = prompt_text(tokenizer, dialogue[:-1], layout)
    if layout == "chat":
        response = render_completion(tokenizer, dialogue[:-1], dialogue[-1:], alone=False, generation=True)
    else:
        response = f"{separator}{dialogue[-1]['content']}"
    rules = TokenRules(None, tokenizer.eos_token_id, max_length, max_length)
    parts = split(rules, encoder(prompt), encoder(prompt + response), partial(encoder.continuation, response))
    tail = [int(token) for token in add_special_tokens(rules, *parts, encoder.is_blank)[1] if token is not None]
    tail = tail[: max_length - 1]  # something has to come before it
    head = encode_prompt(tokenizer, prompt, layout)[-(max_length - len(tail)) :]
    return {"input_ids": [*head, *tail], "labels": [*[IGNORED] * len(head), *tail]}
