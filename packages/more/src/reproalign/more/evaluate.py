"""``more-rm evaluate``: a reward model on held-out domains."""

from __future__ import annotations

from transformers import set_seed

from reproalign.common.console import say
from reproalign.common.errors import UserError
from reproalign.common.invocation import Invocation
from reproalign.common.models.identify import used_weights
from reproalign.common.models.kind import check_reward_model, model_kind
from reproalign.common.records import Run
from reproalign.common.reward.model import load_reward, load_reward_tokenizer
from reproalign.common.reward.reading import Reader
from reproalign.common.reward.rules import RewardRules, scoring_rules, told_rules, training_rules
from reproalign.common.training.arguments import evaluation_arguments
from reproalign.more.config import EvaluateConfig
from reproalign.more.data import load_held_out
from reproalign.more.groups import ItemCollator
from reproalign.more.released import rules_of
from reproalign.more.report import report
from reproalign.more.trainer import RewardTrainer


def evaluate(config: EvaluateConfig, invocation: Invocation) -> None:
    """Measure accuracy and calibration of every domain."""
    rules = _rules(config)
    variant = rules_of(rules.variant)
    ties = config.ties or variant.ties
    arguments = evaluation_arguments(config)
    set_seed(config.seed)  # before the model: a fresh head begins at random
    with Run.open(invocation) as run:
        tokenizer = load_reward_tokenizer(config.model)
        domains = load_held_out(config.data, Reader(tokenizer, rules), seed=config.seed, run=run)
        trainer = RewardTrainer(
            model=load_reward(config.model, tokenizer, rules, domains.pad_id),
            args=arguments,
            data_collator=ItemCollator(domains.pad_id, rules.padding_side),
            processing_class=tokenizer,
            domains=config.data.names(),
            held_out=domains.held_out,
            rules=variant,
            ties=ties,
        )
        used_weights(run, "reward", config.model.name, config.model.revision)
        report(run, trainer.measured(), ties=ties, seed=config.seed, temperature=config.temperature)
        say(f"record and plots: {run.dir}")


def _rules(config: EvaluateConfig) -> RewardRules:
    """Return how the model reads: as it was trained, or with a fresh head as a training would make it read.

    Raises:
        UserError: for a model without a trained head where none is asked for, or one with a head where one is.
    """
    told = told_rules(config.model, config.text, config.variant)
    if not config.fresh_head:
        check_reward_model(config.model)
        return scoring_rules(config.model, told)
    if model_kind(config.model)[0] == "reward":
        raise UserError(
            f"fresh_head=true is for a language model, and model.name={config.model.name} has a trained head; leave "
            "fresh_head out, or give the model it began with"
        )
    return training_rules(config.model, told)
