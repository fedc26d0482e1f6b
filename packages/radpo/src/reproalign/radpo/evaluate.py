"""``radpo evaluate``: a policy against its reference on held-out pairs of any data set."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from reproalign.common.config.data import ReadingConfig
from reproalign.common.console import note, say
from reproalign.common.data.cache import fingerprint_dataset
from reproalign.common.errors import UserError
from reproalign.common.invocation import Invocation, structured
from reproalign.common.mappings import flatten
from reproalign.common.models.identify import model_label, used_weights
from reproalign.common.models.kind import check_policies
from reproalign.common.models.load import load_causal_lm, load_reference, load_tokenizer
from reproalign.common.options.compose import compose
from reproalign.common.options.file import KEY
from reproalign.common.options.words import as_word
from reproalign.common.records import Run
from reproalign.common.records.lineage import training_config
from reproalign.common.text.collate import PairCollator
from reproalign.common.text.templates import check_tokenizer
from reproalign.common.training.arguments import evaluation_arguments
from reproalign.common.training.pairs import PairTrainer
from reproalign.common.training.reference import FrozenReference
from reproalign.radpo.config import EvaluateConfig
from reproalign.radpo.data import load_examples, prepare_held_out
from reproalign.radpo.evaluation import PairEvaluation
from reproalign.radpo.examples import Examples
from reproalign.radpo.report import print_metrics
from reproalign.radpo.rows import RowRules
from reproalign.radpo.rules import RadpoRules, rules_of
from reproalign.radpo.train import with_template


def evaluate(config: EvaluateConfig, invocation: Invocation) -> None:
    """Measure reward accuracy, margins, sequential KL and, with ``loss=ra-dpo``, the sequential risk ratio."""
    reference = config.reference.model
    if not reference:
        raise UserError("rewards and KL are relative; set reference.model to the model that training started from")
    check_policies(config.model, config.reference)
    invocation = as_trained(invocation)
    config = structured(invocation.schema, invocation.config)
    _note_training(config)
    with Run.open(invocation) as run:
        used_weights(run, "policy", config.model.name, config.model.revision)
        used_weights(run, "reference", reference, config.reference.revision)
        tokenizer = load_tokenizer(config.model)
        variant = rules_of(config.variant)
        check_tokenizer(tokenizer, chat_template=with_template(config.model, variant.halos).chat_template)
        pairs = _pairs(config, variant, tokenizer, run)
        trainer = _trainer(config, tokenizer)
        metrics = PairEvaluation(config.loss, pairs, None, tokenizer.pad_token_id).measure(trainer)
        run.set_metrics(metrics)
        print_metrics({model_label(config.model.name): metrics}, len(pairs))
        say(f"record: {run.dir}")


def as_trained(invocation: Invocation) -> Invocation:
    """Return the invocation with the loss that the model was trained by, as far as the user's words leave it open.

    The training's loss stands where a configuration file would, below the words. Where these go with another loss
    alone, and beside a file of the user's, the loss stays as it is.
    """
    own = invocation.config
    found = training_config(own["model"]["name"])
    words = invocation.command[1 + len(invocation.verb.split()) :]
    if found is None or any(word.startswith(f"{KEY}=") for word in words):
        return invocation
    with suppress(UserError):
        given, content = [f"{KEY}={found[0]}", *words], {"loss": found[1].get("loss") or {}}
        loss = compose(invocation.package, "evaluate", invocation.schema, given, content=content).config["loss"]
        before, taken = flatten({"loss": own["loss"]}), flatten({"loss": loss})
        changed = {key.removesuffix(".name"): value for key, value in taken.items() if before.get(key) != value}
        if changed:
            note(f"as {found[0]} was trained: {', '.join(as_word(key, value) for key, value in changed.items())}")
        return replace(invocation, config={**own, "loss": loss})
    return invocation


def _note_training(config: EvaluateConfig) -> None:
    """Say where the loss, which decides what is measured, is by the user's words not the model's own."""
    found = training_config(config.model.name)
    trained = (found[1].get("loss") or {}) if found else {}
    own = {"name": config.loss.name, **asdict(config.loss)}
    differing = {key: value for key, value in trained.items() if not isinstance(value, dict) and own.get(key) != value}
    if found and differing:
        words = " ".join(
            ["loss=" + str(value) if key == "name" else f"loss.{key}={value}" for key, value in differing.items()]
        )
        note(f"measured by other options than {found[0]} was trained with; its own: {words}")


def read_held_out(data: ReadingConfig, run: Run, *, seed: int, any_pair: bool = False) -> Examples:
    """Read the held-out examples of the data sets, of a set without them all, and record where they came from."""
    found = load_examples(data, any_pair=any_pair, seed=seed, train=False, rejects_dir=run.rejects)
    run.used_data(found.provenance)
    assert found.evaluation is not None  # there are rows, or load_set has refused the file
    return found.evaluation


def _pairs(config: EvaluateConfig, variant: RadpoRules, tokenizer: PreTrainedTokenizerBase, run: Run) -> Dataset:
    examples = read_held_out(config.data, run, seed=config.seed, any_pair=variant.any_pair)
    rules = RowRules(
        variant=variant,
        seed=config.seed,
        batch_size=config.batch_size,
        clean_up_spaces=config.clean_up_spaces is not False,
    )
    pairs, size = prepare_held_out(examples, tokenizer, config.text, config.data, rules)
    pairs = pairs.select(range(size))  # one evaluation: a later one of the release may read others (ERRATA Q7)
    run.add_fingerprint("data", "held-out pairs", fingerprint_dataset(pairs), rows=len(pairs))
    return pairs


def _trainer(config: EvaluateConfig, tokenizer: PreTrainedTokenizerBase) -> PairTrainer:
    arguments: Any = evaluation_arguments(config)
    return PairTrainer(
        objective=config.loss,
        model=load_causal_lm(config.model, trainable=False),
        args=arguments,
        data_collator=PairCollator(tokenizer.pad_token_id),
        processing_class=tokenizer,
        reference=FrozenReference(load_reference(config.model, config.reference)),
        logprobs=config.logprobs,
    )
