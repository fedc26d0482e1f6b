"""``ama evaluate``: the mean reward of responses to held-out prompts, perplexity of texts, KL to a reference."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from reproalign.ama.frontier.config import EvaluateConfig
from reproalign.ama.frontier.evaluated import WORK, write_results
from reproalign.ama.frontier.measures import log_ratios
from reproalign.ama.frontier.respond import Answered, respond, reward_model, reward_rules, sampling_rules, score
from reproalign.ama.frontier.texts import Text, TokenRows, read_texts, response_rows, text_rows
from reproalign.ama.rules import AmaRules, rules_of
from reproalign.common.config.model import LoadedModelConfig
from reproalign.common.data.records import Message
from reproalign.common.errors import UserError
from reproalign.common.evaluation.losses import LossScorer, RowLoss, measure
from reproalign.common.files import sha256_json, space_needed
from reproalign.common.generation.asking import asking_tokenizer
from reproalign.common.generation.filters import is_discarded
from reproalign.common.generation.prompt_files import read_prompts
from reproalign.common.generation.samplers import start_sampling
from reproalign.common.generation.samples import Sampled
from reproalign.common.invocation import Invocation
from reproalign.common.logprobs.model import install_completion_logps
from reproalign.common.models.identify import used_weights
from reproalign.common.models.kind import check_language_model, check_reward_model
from reproalign.common.models.load import load_causal_lm, load_tokenizer
from reproalign.common.records import Run
from reproalign.common.text.collate import RowCollator, pad_id
from reproalign.common.text.templates import set_template


@dataclass(frozen=True)
class Given:
    """What an evaluation reads, checked before a model is loaded.

    Attributes:
        prompts: held-out prompts; empty if nothing is sampled.
        texts: for the perplexity; empty if it is not measured.
    """

    prompts: list[list[Message]]
    texts: list[Text]


def evaluate(config: EvaluateConfig, invocation: Invocation) -> None:
    """Sample one response (or n) to each held-out prompt, score them; measure perplexity and KL if asked for.

    The reward is the mean over prompts of the mean reward of their responses, discarded ones included: column A of the
    release. Written are ``responses.jsonl`` (as drawn), ``rewards.jsonl`` (of each prompt id, reward,
    responses, rewards, discarded, tokens, and with ``reference`` the log ratios), ``losses.jsonl`` (of each text file,
    row, tokens and the sum of its losses in nats), ``outputs.json`` (each prompt's first response, for ``ama judge``)
    and ``results.json``. A response depends on the weights, the seed and the place of its prompt alone. An interrupted
    run goes on with the next batch.

    Raises:
        UserError: for a mistake in the options, rows or models, before a model is loaded where that is possible.
    """
    check_options(config)
    variant = rules_of(config.variant)
    state, backend = start_sampling(config.backend, config.launch, config.model)
    given = check_inputs(config)
    full = f"output_dir={config.output_dir}"
    with space_needed(full), Run.open(invocation, is_main=state.is_main_process) as run, space_needed(full):
        if state.is_main_process:
            _fingerprint(config, given, run)
            (run.dir / WORK).mkdir(exist_ok=True)
        state.wait_for_everyone()  # the folders are there
        rows = _answer(config, variant, given.prompts, backend, run.dir)
        texts = _measure_texts(config, given.texts, run.dir)
        ratios = _measure_ratios(config, variant, rows, run.dir)
        if state.is_main_process:
            write_results(config, run, rows, texts, ratios)


def check_options(config: EvaluateConfig) -> None:
    """Check the options alone, for files and models that need not be there yet.

    Raises:
        UserError: naming the key.
    """
    variant = rules_of(config.variant)
    rules = sampling_rules(config, variant)
    if config.launch.strategy not in ("single", "ddp"):
        raise UserError(
            f"launch.strategy={config.launch.strategy} splits a model that is trained; evaluation shares the prompts "
            "among whole models: use launch=ddp"
        )
    _check_combination(config)
    if variant.cleaned and rules.layout != "lmflow":
        raise UserError(
            f"variant=released cuts and cleans responses at '###Human', which layout={rules.layout} has not; set "
            "layout=lmflow or variant=paper"
        )


def _check_combination(config: EvaluateConfig) -> None:
    if config.prompts is None and not config.texts:
        raise UserError("nothing to evaluate: give prompts=FILE with reward=MODEL, or texts=[FILES]")
    if config.prompts is None:
        for name in ("reward", "reference", "max_prompts"):
            if getattr(config, name) is not None:
                raise UserError(f"{name}={getattr(config, name)} is for responses to prompts; give prompts=FILE too")
    names = [Path(file).stem for file in config.texts]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"texts: two files are called '{twice}', by which their perplexities are named; rename one")
    if config.max_texts is not None and not config.texts:
        raise UserError(f"max_texts={config.max_texts} is for texts; give texts=[FILES] too")


def check_inputs(config: EvaluateConfig) -> Given:
    """Read prompts and texts, and check what can be seen of the models without loading them.

    Raises:
        UserError: naming the row or the key.
    """
    prompts = read_prompts(config.prompts)[: config.max_prompts] if config.prompts is not None else []
    texts = read_texts(config.texts, config.max_texts)
    check_language_model(config.model)
    if config.prompts is not None:
        asking_tokenizer(config.model, config.layout)
    if config.reward is not None:
        check_reward_model(reward_model(config), "reward")
        reward_rules(config, rules_of(config.variant))
    if config.reference is not None:
        check_language_model(_reference(config), "reference")
    return Given(prompts, texts)


def _reference(config: EvaluateConfig) -> LoadedModelConfig:
    """Return the reference, held as the model is; its tokenizer is not used."""
    return replace(config.model, name=str(config.reference), revision=None)


def _tokenizer(config: EvaluateConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer with the chat template that the model is asked by; plain texts need none."""
    tokenizer = load_tokenizer(config.model)
    if config.model.chat_template is not None:
        set_template(tokenizer, config.model.chat_template)
    return tokenizer


def _fingerprint(config: EvaluateConfig, given: Given, run: Run) -> None:
    for name, model in (
        ("model", config.model),
        ("reward", reward_model(config) if config.reward is not None else None),
        ("reference", _reference(config) if config.reference is not None else None),
    ):
        if model is not None:
            used_weights(run, name, model.name, model.revision)
    if given.prompts:
        run.add_fingerprint("data", "prompts", sha256_json(given.prompts), path=config.prompts, rows=len(given.prompts))
    if given.texts:
        contents = [text.content for text in given.texts]
        run.add_fingerprint("data", "texts", sha256_json(contents), files=list(config.texts), rows=len(contents))


def _answer(
    config: EvaluateConfig, variant: AmaRules, prompts: list[list[Message]], backend: str, folder: Path
) -> list[Answered]:
    """Return the prompts with responses, and rewards on the first process."""
    if not prompts:
        return []
    drawn = respond(config, sampling_rules(config, variant), backend, prompts, folder)
    scored = score(config, reward_rules(config, variant), drawn, folder) if config.reward is not None else []
    return [_answered(row, "lmflow" if variant.cleaned else "none") for row in scored or drawn]


def _answered(row: Sampled, rule: str) -> Answered:
    return Answered(row.id, row.prompt, row.responses, row.scores, [is_discarded(text, rule) for text in row.responses])


def _measure_texts(config: EvaluateConfig, texts: list[Text], folder: Path) -> tuple[TokenRows, list[RowLoss]] | None:
    if not texts:
        return None
    rows = text_rows(texts, _tokenizer(config), config.layout, config.text_length)
    return rows, _losses(config, config.model, rows, folder / WORK / "texts")


def _measure_ratios(
    config: EvaluateConfig, variant: AmaRules, rows: list[Answered], folder: Path
) -> tuple[TokenRows, list[float], list[int]] | None:
    """Return log π - log π_0 and the tokens of every response, on the first process."""
    if config.reference is None:
        return None
    rules, separator = sampling_rules(config, variant), "none" if variant.unseparated else "space"
    tokens = response_rows(rows, _tokenizer(config), rules, separator=separator)
    own = _losses(config, config.model, tokens, folder / WORK / "model")
    other = _losses(config, _reference(config), tokens, folder / WORK / "reference")
    return tokens, log_ratios(own, other), [loss.tokens for loss in own]


def _losses(config: EvaluateConfig, model: LoadedModelConfig, rows: TokenRows, folder: Path) -> list[RowLoss]:
    """Return the losses of rows under a model on the first process; ``folder`` keeps them until the run is done."""
    state = PartialState()
    if state.is_main_process:
        folder.mkdir(exist_ok=True)
    state.wait_for_everyone()

    def load() -> LossScorer:
        loaded: Any = load_causal_lm(model, trainable=False)
        loaded.to(state.device)
        settings = config.logprobs
        install_completion_logps(loaded, settings)
        return LossScorer(loaded, RowCollator(pad_id(load_tokenizer(config.model))), settings.chunk_size)

    found = measure(rows.tokens, folder, load, batch_size=config.loss_batch_size, sort=True, state=state)
    bad = next((index for index, loss in enumerate(found) if not math.isfinite(loss.nll)), None)
    if bad is not None:
        raise UserError(f"{model.name}: the loss of row {bad} is not finite; set model.dtype=float32, or look at it")
    return found
