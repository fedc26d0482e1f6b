"""``mmpo evaluate``: a policy or a reward model on held-out preferences and on RewardBench-format files."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from reproalign.common.config.model import LogprobsConfig
from reproalign.common.config.text import PairTextConfig
from reproalign.common.console import note, say
from reproalign.common.data.load import load_evaluation
from reproalign.common.errors import UserError
from reproalign.common.evaluation.rewardbench import (
    read_rewardbench,
)
from reproalign.common.invocation import Invocation
from reproalign.common.models.identify import used_weights
from reproalign.common.models.kind import check_policies, model_kind, with_gemma_numerics
from reproalign.common.models.load import load_causal_lm, load_reference, load_tokenizer
from reproalign.common.records import Run
from reproalign.common.records.lineage import training_config
from reproalign.common.reward.model import load_reward, load_reward_tokenizer
from reproalign.common.reward.reading import Reader
from reproalign.common.reward.rules import RewardRules, read_rules
from reproalign.common.text.collate import PairCollator
from reproalign.common.text.templates import check_tokenizer
from reproalign.common.training.arguments import evaluation_arguments
from reproalign.common.training.pairs import PairTrainer, ScoredPairsTrainer
from reproalign.common.training.reference import FrozenReference
from reproalign.common.training.reward import PairedRewardTrainer
from reproalign.mmpo.config import EvaluateConfig, PairRulesConfig
from reproalign.mmpo.objective import MMPO, Likelihood, MMPOReward
from reproalign.mmpo.prepare import PairOptions, prepare_split, reading_rules, used_soft_labels
from reproalign.mmpo.report import HeldOutRewards, draw, print_metrics
from reproalign.mmpo.rewardbench import rewardbench
from reproalign.mmpo.rules import MmpoRules, rules_of
from reproalign.mmpo.target import check_gamma

logger = logging.getLogger(__name__)

MARGINS = ("gamma", "margin_transform", "margin_scale")
DEFAULT_BETA = 0.01
_LOGPROBS = asdict(LogprobsConfig())


def evaluate(config: EvaluateConfig, invocation: Invocation) -> None:
    """Measure accuracy, margins and calibration on the data, and RewardBench's sections if a file is given."""
    kind = _kind(config)
    if kind == "reward":
        _check_reward(config)
    else:
        _check_reference(config)
    config = _as_trained(config)
    check_gamma(config.target.gamma)
    variant = rules_of(config.variant)
    config = replace(config, model=with_gemma_numerics(config.model, variant.gemma_numerics))
    rules = _rules(config) if kind == "reward" else None
    bench = read_rewardbench(config.rewardbench) if config.rewardbench else None
    with Run.open(invocation) as run:
        used_weights(run, kind, config.model.name, config.model.revision)
        if config.reference.model is not None:
            used_weights(run, "reference", config.reference.model, config.reference.revision)
        tokenizer = load_reward_tokenizer(config.model) if rules else load_tokenizer(config.model)
        if rules is None:  # what a reward model needs of its tokenizer depends on how it reads
            check_tokenizer(tokenizer, chat_template=config.model.chat_template)
        reader = Reader(tokenizer, rules) if rules else None
        run.set("in_force", {"beta": config.beta, "target": asdict(config.target)})
        used_soft_labels(run, config.target)
        trainer = _trainer(config, variant, tokenizer, reader)
        held_out = load_evaluation(config.data, seed=config.seed, rejects_dir=run.rejects)
        run.used_data(held_out.provenance)
        options = PairOptions(config.data, config.text, config.target, PairRulesConfig(), config.seed)
        pairs = prepare_split(held_out.train, tokenizer, options, "evaluation", reader)
        rewards = HeldOutRewards(*trainer.rewards(pairs))
        metrics = rewards.metrics(config.n_bins, rounded_ties=variant.rounded_ties)
        run.set_metrics(metrics)
        print_metrics({Path(config.model.name).name or config.model.name: metrics}, len(pairs))
        draw(run, {kind: rewards}, n_bins=config.n_bins, binning=config.binning)
        if bench is not None:
            run.set_metrics({"rewardbench": rewardbench(bench, config, tokenizer, reader, trainer, run)})
        say(f"record and plots: {run.dir}")


def _as_trained(config: EvaluateConfig) -> EvaluateConfig:
    """Fill in what is left open with what the model was trained with, so that its numbers are those of its run."""
    found = training_config(config.model.name)
    folder, trained = found or (None, {})
    target, taken = config.target, {}
    if target.gamma == "auto":
        margins = {name: value for name, value in (trained.get("target") or {}).items() if name in MARGINS}
        target = replace(target, **{"gamma": None, **margins})
        taken = {f"target.{name}": value for name, value in margins.items()}
    beta = config.beta
    if beta is None:
        beta = (trained.get("loss") or {}).get("beta", DEFAULT_BETA)
        taken |= {"beta": beta} if "loss" in trained else {}
    if taken:
        words = ", ".join(f"{name}={'null' if value is None else value}" for name, value in taken.items())
        note(f"as {folder} was trained: {words}")
    return replace(config, target=target, beta=beta)


def _kind(config: EvaluateConfig) -> str:
    if config.kind != "auto":
        return config.kind
    return "reward" if model_kind(config.model)[0] == "reward" else "policy"


def _check_reward(config: EvaluateConfig) -> None:
    """Refuse what is read for policies alone."""
    reference = config.reference
    unread = {
        "reference.model": reference.model,
        "reference.revision": reference.revision,
        "reference_free": config.reference_free,
        "beta": config.beta,
        **{f"logprobs.{key}": value for key, value in asdict(config.logprobs).items() if value != _LOGPROBS[key]},
    }
    for key, value in unread.items():
        if value is not None:
            raise UserError(f"{key}={value} is for a policy, but a reward model is evaluated; leave it out")


def _check_reference(config: EvaluateConfig) -> None:
    check_policies(config.model, config.reference)
    given = config.reference.model is not None
    if config.reference_free is not None:
        if given:
            raise UserError(
                f"reference_free={config.reference_free} is for a policy by itself, but reference.model is set; "
                "remove one"
            )
    elif not given:
        raise UserError(
            "a policy's rewards are relative; set reference.model to the model that training started from, or "
            "reference_free=sum|avg|norm to rank by its own log-probs"
        )


def _rules(config: EvaluateConfig) -> RewardRules:
    """Return how the reward model was trained to read; by the options of ``text`` if nothing beside it says so."""
    given, trained = reading_rules(config.text), read_rules(config.model.name, config.model.revision)
    if trained is None:
        return given
    for name in ("max_length", "system_message", "special_tokens"):
        set_to, default = (getattr(of, name) for of in (config.text, PairTextConfig()))
        if set_to != default and getattr(given, name) != getattr(trained, name):
            logger.warning("text.%s=%s is not used: the reward model reads as it was trained", name, set_to)
    return trained


def _trainer(
    config: EvaluateConfig, variant: MmpoRules, tokenizer: PreTrainedTokenizerBase, reader: Reader | None
) -> ScoredPairsTrainer:
    common: dict[str, Any] = {
        "args": evaluation_arguments(config),
        "processing_class": tokenizer,
    }
    if reader:
        pad, side = reader.special.pad, reader.rules.padding_side
        model = load_reward(config.model, tokenizer, reader.rules, pad)
        collator = PairCollator(pad, padding_side=side)
        objective = MMPOReward(batch_targets=variant.batch_targets)
        return PairedRewardTrainer(model=model, data_collator=collator, objective=objective, **common)
    if config.reference_free:
        return PairTrainer(
            model=load_causal_lm(config.model, trainable=False),
            objective=Likelihood(config.reference_free),
            logprobs=config.logprobs,
            data_collator=PairCollator(tokenizer.pad_token_id),
            **common,
        )
    assert config.beta is not None  # filled in by _as_trained
    return PairTrainer(
        model=load_causal_lm(config.model, trainable=False),
        objective=MMPO(beta=config.beta),
        reference=FrozenReference(load_reference(config.model, config.reference)),
        logprobs=config.logprobs,
        data_collator=PairCollator(tokenizer.pad_token_id),
        **common,
    )
