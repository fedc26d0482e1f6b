"""Stages that trainings have in common: what comes first, pairs read and tokenised, and the trainer of an objective."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase, TrainingArguments, set_seed

from reproalign.common.config.model import ReferenceConfig
from reproalign.common.config.run import BaseRunConfig, DataRunConfig, RunConfig
from reproalign.common.data.load import load_preferences
from reproalign.common.invocation import Invocation
from reproalign.common.models.adapters import Dropout
from reproalign.common.models.identify import used_weights
from reproalign.common.models.load import load_causal_lm
from reproalign.common.records import Run
from reproalign.common.text.collate import PairCollator
from reproalign.common.text.shown import used_rows
from reproalign.common.training.arguments import check_held_out, training_arguments
from reproalign.common.training.hold_reference import hold_reference, reference_mode
from reproalign.common.training.objective import Objective
from reproalign.common.training.pairs import PairTrainer
from reproalign.common.training.preview import preview

HELD_OUT = "set data.sets.NAME.eval_path=FILE, data.sets.NAME.eval_split or data.eval_fraction"


@contextmanager
def open_training(
    config: BaseRunConfig, invocation: Invocation, kind: type[TrainingArguments] = TrainingArguments, **defaults: Any
) -> Iterator[tuple[Run, TrainingArguments]]:
    """Build the arguments of a training, seed what is random about new weights (adapters, heads), and open its run.

    Args:
        config: of the run.
        invocation: what was asked for.
        kind: class of the arguments.
        **defaults: see :func:`~reproalign.common.training.arguments.training_arguments`.

    Raises:
        UserError: for arguments that are refused, or a folder that holds something else.
    """
    arguments = training_arguments(config, Path(config.output_dir), kind, **defaults)
    set_seed(config.seed)
    with Run.open(invocation, is_main=arguments.process_index == 0) as run:
        yield run, arguments


def read_pairs(
    config: DataRunConfig, run: Run, tokenizer: PreTrainedTokenizerBase, prepare: Callable[[Dataset, str], Dataset]
) -> tuple[Dataset, Dataset | None]:
    """Read the preference pairs of both splits, make tokens of them, and record what they are.

    Args:
        config: of the run; ``data`` and ``seed`` are read.
        run: the open record.
        tokenizer: of the model.
        prepare: (records, ``train`` or ``evaluation``) -> tokenised pairs; a paper's own rule stands in it.

    Returns:
        What is trained on, and what is held out, if anything.

    Raises:
        UserError: for anything wrong in the rows.
    """
    found = load_preferences(config.data, seed=config.seed, rejects_dir=run.rejects)
    run.used_data(found.provenance)
    train = prepare(found.train, "train")
    held_out = None if found.evaluation is None else prepare(found.evaluation, "evaluation")
    run.set("pairs", {"train": len(train), "evaluation": len(held_out) if held_out is not None else 0})
    used_rows(run, tokenizer, train)
    return train, held_out


def pair_trainer(
    objective: Objective,
    config: RunConfig,
    reference: ReferenceConfig,
    run: Run,
    arguments: TrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    train: Dataset,
    held_out: Dataset | None,
    *,
    dropout: Dropout = "none",
    weights: str = "policy",
    lay_out: Callable[[Dataset], Dataset] = lambda rows: rows,
    pad_to_multiple_of: int | None = None,
) -> PairTrainer:
    """Load a policy and hold its reference, and return the trainer of an objective on pairs; a dry run ends here.

    Args:
        objective: what is minimised; it says whether there is a reference.
        config: ``model``, ``logprobs`` and ``data`` are read.
        reference: how the reference is held.
        run: the open record.
        arguments: of the training.
        tokenizer: of the model, with a pad token.
        train: tokenised pairs.
        held_out: likewise, or None.
        dropout: which dropout acts where ``model.dropout`` is null.
        weights: what the starting weights are called in the record.
        lay_out: puts the training pairs, with what was cached of the reference, in the order they are trained in.
        pad_to_multiple_of: of batches, in tokens.

    Raises:
        UserError: for evaluation during training without held-out pairs, a reference that does not go with the model,
            or weights that cannot be read.
    """
    check_held_out(arguments, held_out, HELD_OUT, rows="pairs")
    mode = "none" if objective.needs.reference == "none" else reference_mode(config, reference)
    preview(run, config, arguments, train, held_out, reference=mode)
    pad_id = tokenizer.pad_token_id
    assert isinstance(pad_id, int)
    held = None
    if mode != "none":
        held, train, held_out = hold_reference(mode, config, reference, train, held_out, pad_id)
    train = lay_out(train)
    model = load_causal_lm(config.model, dropout=dropout)
    used_weights(run, weights, config.model.name, config.model.revision)
    if mode != "none" and reference.model is not None:
        used_weights(run, "reference", reference.model, reference.revision)
    return PairTrainer(
        objective=objective,
        reference=held,
        logprobs=config.logprobs,
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=held_out,
        data_collator=PairCollator(pad_id, pad_to_multiple_of=pad_to_multiple_of),
        processing_class=tokenizer,
    )
