"""``mmpo train`` and ``mmpo reward``: policy and reward-model training on soft targets."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase, TrainingArguments

from reproalign.common.config.run import BaseRunConfig
from reproalign.common.console import say
from reproalign.common.invocation import Invocation
from reproalign.common.models.identify import used_weights
from reproalign.common.models.kind import check_policies, with_gemma_numerics
from reproalign.common.models.load import load_tokenizer
from reproalign.common.records import Run
from reproalign.common.reward.model import load_reward
from reproalign.common.reward.reading import Reader
from reproalign.common.reward.rules import NOTE
from reproalign.common.text.collate import PairCollator
from reproalign.common.text.templates import check_tokenizer
from reproalign.common.training.arguments import check_held_out
from reproalign.common.training.fit import fit
from reproalign.common.training.hold_reference import reference_mode
from reproalign.common.training.pairs import ScoredPairsTrainer
from reproalign.common.training.preview import preview
from reproalign.common.training.reward import PairedRewardTrainer
from reproalign.common.training.stages import HELD_OUT, open_training, pair_trainer
from reproalign.mmpo.config import PreferenceConfig, RewardConfig
from reproalign.mmpo.naming import released_name
from reproalign.mmpo.objective import MMPOReward
from reproalign.mmpo.prepare import load_pairs, reading_rules
from reproalign.mmpo.released import lay_out_epochs
from reproalign.mmpo.report import HeldOutRewards, draw, print_metrics
from reproalign.mmpo.rules import MmpoRules, rules_of
from reproalign.mmpo.target import check_gamma

logger = logging.getLogger(__name__)


def train(config: PreferenceConfig, invocation: Invocation) -> None:
    """Train a policy: load, prepare, fit, evaluate, draw, record."""
    if not config.loss.reads_targets:
        warnings.warn(
            f"loss={config.loss.name} does not use the margin (as released); set loss.soft=true to weigh both "
            "directions with it",
            UserWarning,
            stacklevel=2,
        )
    check_options(config)
    check_policies(config.model, config.reference)
    variant = rules_of(config.variant)
    config = replace(config, model=with_gemma_numerics(config.model, variant.gemma_numerics))
    objective = config.loss if variant.smooths_targets else config.loss.without_smoothing()
    with open_training(config, invocation, **_name(config, variant)) as (run, arguments):
        tokenizer = _tokenizer(config)
        pairs = load_pairs(config, tokenizer, run)
        trainer = pair_trainer(
            *(objective, config, config.reference, run, arguments, tokenizer, pairs.train, pairs.evaluation),
            dropout=variant.dropout,
            lay_out=lambda rows: _in_order(rows, arguments, run) if variant.release_epochs else rows,
            pad_to_multiple_of=config.pad_to_multiple_of,
        )
        _run(trainer, run, config, variant, tokenizer)


def reward(config: RewardConfig, invocation: Invocation) -> None:
    """Train a reward model: load, prepare, fit, evaluate, draw, record."""
    check_reward_options(config)
    variant = rules_of(config.variant)
    config = replace(config, model=with_gemma_numerics(config.model, variant.gemma_numerics))
    rules = reading_rules(config.text, config.pool)
    with open_training(config, invocation, **_name(config, variant)) as (run, arguments):
        tokenizer = _tokenizer(config)
        pairs = load_pairs(config, tokenizer, run, Reader(tokenizer, rules))
        train_rows = _in_order(pairs.train, arguments, run) if variant.release_epochs else pairs.train
        preview(run, config, arguments, train_rows, pairs.evaluation)
        check_held_out(arguments, pairs.evaluation, HELD_OUT, rows="pairs")
        pad_id = tokenizer.pad_token_id
        assert isinstance(pad_id, int)  # check_tokenizer has set it
        model = load_reward(config.model, tokenizer, rules, pad_id)
        used_weights(run, "start", config.model.name, config.model.revision)
        trainer = PairedRewardTrainer(
            objective=MMPOReward(batch_targets=variant.batch_targets),
            rules=rules,
            model=model,
            args=arguments,
            train_dataset=train_rows,
            eval_dataset=pairs.evaluation,
            data_collator=PairCollator(pad_id, pad_to_multiple_of=config.pad_to_multiple_of),
            processing_class=tokenizer,
        )
        _run(trainer, run, config, variant, tokenizer, notes={NOTE: rules.note()})


def check_options(config: PreferenceConfig) -> None:
    """Check what can be checked of ``mmpo train`` without rows and model.

    Raises:
        UserError: naming the key.
    """
    check_gamma(config.target.gamma)
    reference_mode(config, config.reference)


def check_reward_options(config: RewardConfig) -> None:
    """Check what can be checked of ``mmpo reward`` without rows and model.

    Raises:
        UserError: naming the key.
    """
    check_gamma(config.target.gamma)
    reading_rules(config.text, config.pool)


def _run(
    trainer: ScoredPairsTrainer,
    run: Run,
    config: PreferenceConfig | RewardConfig,
    variant: MmpoRules,
    tokenizer: PreTrainedTokenizerBase,
    notes: Mapping[str, Any] | None = None,
) -> None:
    evaluations, held_out = {}, trainer.eval_dataset
    assert held_out is None or isinstance(held_out, Dataset)
    if config.launch.strategy.startswith("zero") and config.evaluate_before:
        logger.warning("evaluate_before is skipped: DeepSpeed cannot evaluate before training has set up its engine")
    elif config.evaluate_before and held_out:
        evaluations["before"] = HeldOutRewards(*trainer.rewards(held_out))
    fit(trainer, run, config, tokenizer, notes=notes)
    if held_out:
        evaluations["after"] = HeldOutRewards(*trainer.rewards(held_out))
    if not run.is_main:
        return
    metrics = {name: rewards.metrics(rounded_ties=variant.rounded_ties) for name, rewards in evaluations.items()}
    run.set_metrics(metrics)
    if held_out:
        print_metrics(metrics, len(held_out))
    draw(run, evaluations)
    say(f"model, record and plots: {run.dir}")


def _name(config: PreferenceConfig | RewardConfig, variant: MmpoRules) -> dict[str, Any]:
    """The release's name of the run, for whatever logs it."""
    return {"run_name": released_name(config)} if variant.release_names else {}


def _in_order(rows: Dataset, arguments: TrainingArguments, run: Run) -> Dataset:
    """Lay the training pairs out as the release goes through them."""
    laid_out, steps = lay_out_epochs(rows, arguments)
    run.set("steps", {"per_epoch": steps.per_epoch, "total": steps.total})
    return laid_out


def _tokenizer(config: BaseRunConfig) -> PreTrainedTokenizerBase:
    tokenizer = load_tokenizer(config.model)
    check_tokenizer(tokenizer, chat_template=config.model.chat_template)
    return tokenizer
