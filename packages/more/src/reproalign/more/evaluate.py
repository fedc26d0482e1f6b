"""``more-rm evaluate``: a reward model on held-out domains; or sampled responses against each other."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from transformers import set_seed

from reproalign.common.config import BaseRunConfig
from reproalign.common.errors import UserError
from reproalign.common.invocation import Invocation
from reproalign.common.models.identify import identify_weights
from reproalign.common.models.kind import check_reward_model, model_kind
from reproalign.common.records import Run
from reproalign.common.reward.model import load_reward, load_reward_tokenizer
from reproalign.common.reward.reading import Reader
from reproalign.common.reward.rules import RewardRules, scoring_rules, told_rules, training_rules
from reproalign.common.training.arguments import training_arguments
from reproalign.more.compare import compare
from reproalign.more.config import EvaluateConfig
from reproalign.more.data import load_domains
from reproalign.more.groups import ItemCollator
from reproalign.more.metrics import ties_of
from reproalign.more.report import report
from reproalign.more.trainer import RewardTrainer


def evaluate(config: EvaluateConfig, invocation: Invocation) -> None:
    """Measure accuracy and calibration of every domain; with ``responses`` compare language models instead."""
    if config.responses is not None:
        if config.fresh_head:
            raise UserError("fresh_head is for held-out domains; leave it out where responses are compared")
        compare(config, invocation)
        return
    rules = _rules(config)
    ties = ties_of(config.ties, rules.variant)
    base = BaseRunConfig(
        output_dir=config.output_dir,
        seed=config.seed,
        trainer={"per_device_eval_batch_size": config.batch_size, "report_to": [], **config.trainer},
    )
    arguments = training_arguments(base, Path(config.output_dir))
    set_seed(config.seed)  # before the model: a fresh head begins at random
    with Run.open(invocation) as run:
        tokenizer = load_reward_tokenizer(config.model)
        domains = load_domains(
            config.data,
            Reader(tokenizer, rules),
            method="multitask",
            seed=config.seed,
            run=run,
            evaluation_only=True,
        )
        trainer = RewardTrainer(
            model=load_reward(config.model, tokenizer, rules, domains.pad_id),
            args=arguments,
            data_collator=ItemCollator(domains.pad_id, rules.padding_side),
            processing_class=tokenizer,
            domains=config.data.names(),
            held_out=domains.held_out,
            variant=rules.variant,
            ties=ties,
        )
        weights = identify_weights(config.model.name, config.model.revision)
        run.add_fingerprint("weights", "reward", weights, name=config.model.name, revision=config.model.revision)
        report(run, trainer.measured(), ties=ties, seed=config.seed, temperature=config.temperature)
        Console().print(f"record and plots: {run.dir}", highlight=False)


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
