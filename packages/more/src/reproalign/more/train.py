"""``more-rm train``: a reward model on several domains, by MORE or by the plain ranking loss."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

from reproalign.common.console import say
from reproalign.common.invocation import Invocation
from reproalign.common.models.identify import used_weights
from reproalign.common.reward.model import load_reward, load_reward_tokenizer
from reproalign.common.reward.reading import Reader
from reproalign.common.reward.rules import NOTE, RewardRules, told_rules, training_rules
from reproalign.common.training.arguments import check_held_out
from reproalign.common.training.fit import fit
from reproalign.common.training.preview import preview
from reproalign.common.training.stages import open_training
from reproalign.more.balance import settle_weights
from reproalign.more.balanced import MoreTrainer
from reproalign.more.config import TrainConfig, WeightsConfig
from reproalign.more.data import load_domains
from reproalign.more.groups import ItemCollator
from reproalign.more.released import rules_of, warmup_decay
from reproalign.more.report import report
from reproalign.more.trainer import RewardTrainer

logger = logging.getLogger(__name__)


def check_options(config: TrainConfig) -> tuple[list[str], WeightsConfig, str]:
    """Check what can be checked without rows and model.

    Returns:
        The domains that are trained on, how they are weighted, and what ties count, with nothing left open.

    Raises:
        UserError: naming the key.
    """
    RewardRules(**told_rules(config.model, config.text, config.variant))
    trained = config.data.train_domains or config.data.names()
    variant = rules_of(config.variant)
    ties = config.ties or variant.ties
    return trained, settle_weights(config.weights, trained, variant.weights), ties


def train(config: TrainConfig, invocation: Invocation) -> None:
    """Train a reward model: load, tabulate, fit, measure every domain, draw, record."""
    trained, weights, ties = check_options(config)
    variant, grouped = rules_of(config.variant), config.method == "more" and config.data.resampling
    with open_training(config, invocation) as (run, arguments):
        rules = training_rules(config.model, told_rules(config.model, config.text, config.variant))
        tokenizer = load_reward_tokenizer(config.model)
        domains = load_domains(
            config.data,
            Reader(tokenizer, rules),
            method=config.method,
            seed=config.seed,
            run=run,
        )
        remedy = "set data.sets.NAME.eval_path=FILE or data.eval_fraction"
        check_held_out(arguments, domains.held_out, remedy, rows="items")
        preview(run, config, arguments, domains.train, domains.held_out)
        model = load_reward(config.model, tokenizer, rules, domains.pad_id)
        used_weights(run, "start", config.model.name, config.model.revision)
        if run.is_main and config.method == "more":
            run.set("weights", asdict(weights))  # with what null stands for
        common: dict[str, Any] = {
            "model": model,
            "args": arguments,
            "train_dataset": domains.train,
            "eval_dataset": domains.held_out or None,
            "data_collator": ItemCollator(domains.pad_id, rules.padding_side, by_domain=variant.by_domain and grouped),
            "processing_class": tokenizer,
            "domains": trained,
            "held_out": domains.held_out,
            "rules": variant,
            "ties": ties,
        }
        if variant.warmup_decay and "lr_scheduler_type" not in config.trainer:
            common["schedule"] = lambda steps: warmup_decay(steps, arguments.get_warmup_steps(steps))
        if config.method == "more":
            trainer: RewardTrainer = MoreTrainer(weights=weights, grouped=grouped, **common)
        else:
            trainer = RewardTrainer(**common)
        before = None
        if config.launch.strategy.startswith("zero") and config.evaluate_before:
            logger.warning("evaluate_before is skipped: DeepSpeed has no engine before training")
        elif config.evaluate_before:
            before = trainer.measured()
        fit(trainer, run, config, tokenizer, notes={NOTE: rules.note()})
        after = trainer.measured()
        if run.is_main:
            if after:
                report(run, after, ties=ties, seed=config.seed, before=before)
            say(f"model, record and plots: {run.dir}")
