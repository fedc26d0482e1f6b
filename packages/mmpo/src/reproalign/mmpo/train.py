"""``mmpo train`` and ``mmpo reward``: policy and reward-model training on soft targets."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainingArguments, set_seed

from reproalign.common.config import RunConfig
from reproalign.common.console import say
from reproalign.common.invocation import Invocation
from reproalign.common.models.identify import used_weights
from reproalign.common.models.kind import with_gemma_numerics
from reproalign.common.models.load import load_causal_lm, load_tokenizer
from reproalign.common.records import Run
from reproalign.common.reward.model import load_reward
from reproalign.common.reward.reading import Reader
from reproalign.common.reward.rules import NOTE
from reproalign.common.text.collate import PairCollator
from reproalign.common.text.templates import check_tokenizer
from reproalign.common.training.arguments import check_held_out, training_arguments
from reproalign.common.training.fit import fit
from reproalign.common.training.pairs import PairTrainer, ScoredPairsTrainer
from reproalign.common.training.preview import preview
from reproalign.common.training.reference import hold_reference, reference_mode
from reproalign.common.training.reward import PairedRewardTrainer
from reproalign.mmpo.config import PreferenceConfig, RewardConfig
from reproalign.mmpo.naming import released_name
from reproalign.mmpo.objective import MMPOReward
from reproalign.mmpo.prepare import Pairs, load_pairs, reading_rules
from reproalign.mmpo.released import lay_out_epochs
from reproalign.mmpo.report import Rewards, draw, print_metrics
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
    variant = rules_of(config.variant)
    config = replace(config, model=with_gemma_numerics(config.model, variant.gemma_numerics))
    objective = config.loss if variant.smooths_targets else config.loss.without_smoothing()
    mode = reference_mode(config, config.reference)
    arguments = training_arguments(config, Path(config.output_dir), **_name(config, variant))
    set_seed(config.seed)  # before the model: adapters and reward heads begin at random
    with Run.open(invocation, is_main=arguments.process_index == 0) as run:
        tokenizer = _tokenizer(config)
        pairs = load_pairs(config, tokenizer, run)
        preview(
            run,
            config,
            arguments,
            pairs.train,
            pairs.evaluation,
            reference=mode if objective.needs.reference != "none" else "none",
        )
        reference = None
        if objective.needs.reference != "none":
            reference, *columns = hold_reference(
                mode, config, config.reference, pairs.train, pairs.evaluation, _pad_id(tokenizer)
            )
            pairs = Pairs(*columns)
        if variant.release_epochs:
            pairs = _in_order(pairs, arguments, run)
        model = load_causal_lm(config.model, dropout=variant.dropout)
        used_weights(run, "policy", config.model)
        trainer = PairTrainer(
            objective=objective,
            reference=reference,
            logprobs=config.logprobs,
            **_common(config, model, arguments, pairs, tokenizer),
        )
        _run(trainer, run, config, variant, tokenizer, pairs)


def reward(config: RewardConfig, invocation: Invocation) -> None:
    """Train a reward model: load, prepare, fit, evaluate, draw, record."""
    check_reward_options(config)
    variant = rules_of(config.variant)
    config = replace(config, model=with_gemma_numerics(config.model, variant.gemma_numerics))
    rules = reading_rules(config.text, config.pool)
    arguments = training_arguments(config, Path(config.output_dir), **_name(config, variant))
    set_seed(config.seed)  # before the model: adapters and reward heads begin at random
    with Run.open(invocation, is_main=arguments.process_index == 0) as run:
        tokenizer = _tokenizer(config)
        pairs = load_pairs(config, tokenizer, run, Reader(tokenizer, rules))
        if variant.release_epochs:
            pairs = _in_order(pairs, arguments, run)
        preview(run, config, arguments, pairs.train, pairs.evaluation)
        model = load_reward(config.model, tokenizer, rules, _pad_id(tokenizer))
        used_weights(run, "start", config.model)
        trainer = PairedRewardTrainer(
            objective=MMPOReward(batch_targets=variant.batch_targets),
            rules=rules,
            **_common(config, model, arguments, pairs, tokenizer),
        )
        _run(trainer, run, config, variant, tokenizer, pairs, notes={NOTE: rules.note()})


def check_options(config: PreferenceConfig | RewardConfig) -> None:
    """Check what can be checked without rows and model.

    Raises:
        UserError: naming the key.
    """
    check_gamma(config.target.gamma)


def check_reward_options(config: RewardConfig) -> None:
    """Check what can be checked of ``mmpo reward`` without rows and model.

    Raises:
        UserError: naming the key.
    """
    check_options(config)
    reading_rules(config.text, config.pool)


def _run(
    trainer: ScoredPairsTrainer,
    run: Run,
    config: PreferenceConfig | RewardConfig,
    variant: MmpoRules,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Pairs,
    notes: Mapping[str, Any] | None = None,
) -> None:
    evaluations = {}
    if config.launch.strategy.startswith("zero") and config.evaluate_before:
        logger.warning("evaluate_before is skipped: DeepSpeed cannot evaluate before training has set up its engine")
    elif config.evaluate_before and pairs.evaluation:
        evaluations["before"] = Rewards(*trainer.rewards(pairs.evaluation))
    fit(trainer, run, config, tokenizer, notes=notes)
    if pairs.evaluation:
        evaluations["after"] = Rewards(*trainer.rewards(pairs.evaluation))
    if not run.is_main:
        return
    metrics = {name: rewards.metrics(rounded_ties=variant.rounded_ties) for name, rewards in evaluations.items()}
    run.set_metrics(metrics)
    if pairs.evaluation:
        print_metrics(metrics, len(pairs.evaluation))
    draw(run.dir, evaluations)
    say(f"model, record and plots: {run.dir}")


def _name(config: PreferenceConfig | RewardConfig, variant: MmpoRules) -> dict[str, Any]:
    """The release's name of the run, for whatever logs it."""
    return {"run_name": released_name(config)} if variant.release_names else {}


def _in_order(pairs: Pairs, arguments: TrainingArguments, run: Run) -> Pairs:
    """Lay the training pairs out as the release goes through them."""
    train, steps = lay_out_epochs(pairs.train, arguments)
    run.set("steps", {"per_epoch": steps.per_epoch, "total": steps.total})
    return Pairs(train, pairs.evaluation)


def _common(
    config: PreferenceConfig | RewardConfig,
    model: Any,
    arguments: TrainingArguments,
    pairs: Pairs,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Any]:
    remedy = "set data.sets.NAME.eval_path=FILE, data.sets.NAME.eval_split or data.eval_fraction"
    check_held_out(arguments, pairs.evaluation, remedy, rows="pairs")
    return {
        "model": model,
        "args": arguments,
        "train_dataset": pairs.train,
        "eval_dataset": pairs.evaluation,
        "data_collator": PairCollator(_pad_id(tokenizer), pad_to_multiple_of=config.pad_to_multiple_of),
        "processing_class": tokenizer,
    }


def _tokenizer(config: RunConfig) -> PreTrainedTokenizerBase:
    tokenizer = load_tokenizer(config.model)
    check_tokenizer(tokenizer, chat_template=config.model.chat_template)
    return tokenizer


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    assert isinstance(tokenizer.pad_token_id, int)  # check_tokenizer has set it
    return tokenizer.pad_token_id
