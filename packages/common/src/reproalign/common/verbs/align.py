"""The verb ``align``: supervised fine-tuning on the responses that a reward model liked best."""

from __future__ import annotations

import math

from accelerate import PartialState
from rich.table import Table
from trl import SFTConfig

from reproalign.common.console import result_console, say
from reproalign.common.data.holdout import hold_out
from reproalign.common.evaluation.perplexity import perplexities
from reproalign.common.evaluation.plots import training_curves
from reproalign.common.files import sha256_json
from reproalign.common.generation.asking import asking_tokenizer
from reproalign.common.generation.samples import SELECTED, find, read_selected
from reproalign.common.invocation import Invocation
from reproalign.common.models.kind import check_language_model
from reproalign.common.text.templates import check_separator
from reproalign.common.training.sft import answer_losses, check_loss_mean, fine_tune, tokenize_responses
from reproalign.common.training.stages import open_training
from reproalign.common.verbs.config import AlignConfig


def align(config: AlignConfig, invocation: Invocation) -> None:
    """Fine-tune with ``trl.SFTTrainer`` on ``selected``; the loss is on the responses alone (MORE eq. 3).

    With something held out its loss per token and perplexities (``common.evaluation.perplexity``) are recorded.
    """
    check_align(config)
    path = find(config.selected, SELECTED, "selected")
    dialogues = read_selected(path)
    train, held_out = hold_out(
        dialogues, config.eval_fraction, config.seed, lambda dialogue: dialogue[:-1], key="eval_fraction"
    )
    check_language_model(config.model)
    labelled = {"max_length": config.max_length, "completion_only_loss": False}  # the labels say what the loss is on
    with open_training(config, invocation, SFTConfig, **labelled) as (run, arguments):
        tokenizer = asking_tokenizer(config.model, config.layout)
        for name, part in (("train", train), ("evaluation", held_out)):
            if part:
                run.add_fingerprint("data", name, sha256_json(part), path=config.selected, rows=len(part))
        with PartialState().main_process_first():
            rows, evaluation = (
                tokenize_responses(
                    part,
                    tokenizer,
                    layout=config.layout,
                    max_length=config.max_length,
                    response_separator=config.response_separator,
                )
                for part in (train, held_out)
            )
        trainer = fine_tune(
            config, run, arguments, tokenizer, rows, evaluation if held_out else None, loss_mean=config.loss_mean
        )
        if held_out:
            metrics = perplexities(answer_losses(trainer))
            metrics["perplexity"] = math.exp(min(run.record["metrics"]["eval_loss"], 700.0))
            run.set_metrics(metrics)
        if run.is_main:
            if held_out:
                table = Table(f"held-out responses: {len(held_out)}", "", header_style="bold")
                for name, value in run.record["metrics"].items():
                    table.add_row(name, f"{value:.4f}" if isinstance(value, float) else str(value))
                result_console().print(table)
            training_curves(run.rows, run.dir / "plots" / "training.png", ("loss", "grad_norm"))
            say(f"model, record and plots: {run.dir}")


def check_align(config: AlignConfig) -> None:
    """Refuse options that nothing can be trained with, before there is anything to train on.

    Raises:
        UserError: naming the key.
    """
    check_separator(config.layout, config.response_separator)
    check_loss_mean(config.loss_mean, config.trainer)
