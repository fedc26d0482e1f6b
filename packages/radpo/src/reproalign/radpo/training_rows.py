"""From the configuration of a run to its rows, and to what follows from their number: the learning rate's schedule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from datasets import Dataset
from transformers import PreTrainedTokenizerBase, TrainingArguments

from reproalign.common.data.cache import fingerprint_dataset
from reproalign.common.errors import UserError
from reproalign.common.records import Run
from reproalign.common.text.shown import used_rows
from reproalign.common.training.collecting import Factor
from reproalign.radpo.config import TrainConfig
from reproalign.radpo.data import load_examples, prepare_held_out, prepare_rows
from reproalign.radpo.rows import RowRules, released_length
from reproalign.radpo.rules import RadpoRules
from reproalign.radpo.schedule import released_cosine, released_ppo, warmup_cosine


@dataclass(frozen=True)
class TrainingRows:
    """What a run trains on and is measured on.

    Attributes:
        rows: of all epochs, one after the other in their order.
        length: what the release takes for the number of training steps.
        held_out: pairs of one pass or several, see :func:`~reproalign.radpo.data.prepare_held_out`; None: there are
            none.
        pairs_per_pass: of the held-out pairs; None: there are none.
    """

    rows: Dataset
    length: float
    held_out: Dataset | None
    pairs_per_pass: int | None


def row_rules(
    config: TrainConfig, variant: RadpoRules, *, batch_size: int, accumulation: int, processes: int
) -> RowRules:
    """Return how the examples of a run become rows, with batches of ``batch_size`` for each of ``processes``."""
    good, bad = config.loss.control_tokens or (RowRules.good, RowRules.bad)
    return RowRules(
        kind=config.loss.kind,
        variant=variant,
        seed=config.seed,
        epochs=epochs(config),
        batch_size=batch_size,
        processes=processes,
        accumulation=accumulation,
        repeats=config.loss.steps_per_batch,
        clean_up_spaces=config.rows.clean_up_spaces is not False,
        incomplete=config.rows.incomplete,
        selection=config.rows.selection,
        frac_unique_desirable=config.rows.frac_unique_desirable,
        frac_unique_undesirable=config.rows.frac_unique_undesirable,
        good=good,
        bad=bad,
    )


def schedule(config: TrainConfig, variant: RadpoRules, length: float) -> Callable[[int], Factor]:
    """Return how the learning rate goes, from the run's number of steps, which the release's does not read.

    Args:
        config: ``loss``, ``warmup_steps`` and ``released.processes`` are read.
        variant: of the run.
        length: from :func:`~reproalign.radpo.rows.released_length`.
    """
    if not variant.release_schedule:
        return partial(warmup_cosine, config.warmup_steps)
    if config.loss.accumulates:
        factor = released_cosine(config.warmup_steps, length, config.released.processes)
    else:
        factor = released_ppo(config.warmup_steps)
    return lambda steps: factor


def epochs(config: TrainConfig) -> int:
    """Return ``trainer.num_train_epochs``.

    Raises:
        UserError: if it is no whole number, or something else does not go with several epochs.
    """
    given = config.trainer.get("num_train_epochs", 1)
    if isinstance(given, bool) or not isinstance(given, int | float) or given != given // 1 or given < 1:
        raise UserError(
            f"trainer.num_train_epochs={given} must be a whole number; trainer.max_steps ends a run earlier"
        )
    if given > 1 and config.rows.incomplete == "keep":
        raise UserError("rows.incomplete=keep is for one epoch: a short batch would shift those of the next epochs")
    for key in ("eval_strategy", "save_strategy", "logging_strategy"):
        if given > 1 and str(config.trainer.get(key)) == "epoch":
            raise UserError(f"trainer.{key}=epoch: all epochs are laid out as one here; give steps")
    return int(given)


def read_rows(
    config: TrainConfig,
    variant: RadpoRules,
    arguments: TrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    run: Run,
) -> TrainingRows:
    """Read the data sets, turn them into rows of the objective's kind, and record where they came from.

    Raises:
        UserError: for data or settings that cannot be used.
    """
    rules = row_rules(
        config,
        variant,
        batch_size=arguments.per_device_train_batch_size,
        accumulation=arguments.gradient_accumulation_steps,
        processes=arguments.world_size,
    )
    examples = load_examples(config.data, any_pair=variant.any_pair, seed=config.seed, rejects_dir=run.rejects)
    run.used_data(examples.provenance)
    rows, counts = prepare_rows(
        examples.train, tokenizer, config.text, config.data, rules, max_rows=config.data.max_rows
    )
    run.set("rows", {**counts, "epochs": rules.epochs})
    if config.loss.needs.rows == "completions":
        rows = rows.add_column("label", [True] * len(rows))
    held_out, per_pass = None, None
    if str(config.trainer.get("eval_strategy", "no")) != "no" and not examples.evaluation:
        raise UserError(
            "trainer.eval_strategy needs held-out pairs; set data.sets.NAME.eval_path=FILE or data.eval_fraction"
        )
    if examples.evaluation and any(example.pairs for example in examples.evaluation.values()):
        paired = replace(rules, kind="paired", batch_size=arguments.per_device_eval_batch_size)
        held_out, per_pass = prepare_held_out(examples.evaluation, tokenizer, config.text, config.data, paired)
    for name, dataset in (("train rows", rows), ("held-out pairs", held_out)):
        if dataset is not None:
            run.add_fingerprint("data", name, fingerprint_dataset(dataset), rows=len(dataset))
    used_rows(run, tokenizer, rows)
    return TrainingRows(rows, released_length(examples.train, rules), held_out, per_pass)
