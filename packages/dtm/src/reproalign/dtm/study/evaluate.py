"""``dtm evaluate``: the loss of held-out responses under a model, overall and by source."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerBase

from reproalign.common.console import result_console, say
from reproalign.common.data.cache import fingerprint_dataset
from reproalign.common.errors import UserError
from reproalign.common.evaluation.losses import LossScorer, RowLoss, measure, remove_parts
from reproalign.common.files import atomic_path, space_needed, write_json, write_text
from reproalign.common.invocation import Invocation
from reproalign.common.launch.plan import check_in_force
from reproalign.common.logprobs.model import install_completion_logps
from reproalign.common.models.identify import used_weights
from reproalign.common.models.kind import check_language_model
from reproalign.common.models.load import load_causal_lm, load_tokenizer, model_path
from reproalign.common.records import Run
from reproalign.common.records.fingerprints import identity_of
from reproalign.common.records.record import plain
from reproalign.dtm.rows import is_placeholder, read_rows
from reproalign.dtm.rules import DtmRules, rules_of
from reproalign.dtm.study.config import EvaluateConfig
from reproalign.dtm.study.plots import intervals
from reproalign.dtm.study.results import RESULTS, ROWS, TOKENS
from reproalign.dtm.study.summary import OVERALL, Summary, as_csv, as_metrics, summarise, table
from reproalign.dtm.tokens import TokensConfig, collator, resolved, tokenize

_ELSEWHERE = ("num_proc", "cache_dir", "drop_unsupervised")  # options of tokens that change no loss


@dataclass(frozen=True)
class HeldOut:
    """Tokenised rows that something can be measured of.

    Attributes:
        tokens: ``input_ids``, ``labels``, ``source``.
        indices: of each in the rows that were read.
        facts: for the record: how many were read and left out, and fingerprints.
    """

    tokens: Dataset
    indices: list[int]
    facts: dict[str, Any]


def evaluate(config: EvaluateConfig, invocation: Invocation) -> None:
    """Measure the token-mean negative log-likelihood of responses, L = Σ_i Σ_t ℓ_{i,t} / Σ_i n_i.

    Written are ``results.json`` and ``results.csv`` (overall and by source: loss in nats per token with its bootstrap
    interval over rows, perplexity, token accuracy), ``rows.jsonl`` (of each row index, source, tokens, and the sum of
    its losses) and, with ``per_token``, ``tokens.safetensors``. An interrupted run goes on with the next batch.

    Raises:
        UserError: for a mistake in the options, rows or model, before a model is loaded where that is possible.
    """
    tokens, rules = check_options(config), rules_of(config.variant)
    state = PartialState(cpu=not torch.accelerator.is_available())
    check_in_force(config.launch.strategy, state.distributed_type.value)
    model_path(config.model.name)
    check_language_model(config.model)
    tokenizer = load_tokenizer(config.model)
    held_out = prepare(config, tokens, tokenizer)

    def load() -> LossScorer:
        model = load_causal_lm(config.model, trainable=False)
        model.to(state.device)
        settings = config.logprobs
        install_completion_logps(model, settings)
        collate = collator(tokenizer, tokens.padding_side)
        return LossScorer(model, collate, settings.chunk_size, config.per_token)

    full = f"output_dir={config.output_dir}"
    with space_needed(full), Run.open(invocation, is_main=state.is_main_process) as run, space_needed(full):
        if state.is_main_process:
            used_weights(run, "model", config.model.name, config.model.revision)
            run.add_fingerprint("data", "rows", held_out.facts["sha256"], files=list(config.rows))
        state.wait_for_everyone()  # the folder is there
        # Sorting by length pads less; the release's accuracy depends on which rows share a batch.
        sort = not rules.batch_measures
        losses = measure(held_out.tokens, run.dir, load, batch_size=config.batch_size, sort=sort, state=state)
        if state.is_main_process:
            _report(config, rules, tokens, held_out, losses, run)


def prepare(config: EvaluateConfig, tokens: TokensConfig, tokenizer: PreTrainedTokenizerBase) -> HeldOut:
    """Read, draw and tokenise the rows; those without text or without a supervised token are left out and counted.

    Raises:
        UserError: if nothing is left, or the sample is larger than the rows.
    """
    rows = read_rows(config.rows, cache_dir=tokens.cache_dir)
    there = [index for index, row in enumerate(rows) if not is_placeholder(row)]
    chosen = np.asarray(there, dtype=np.int64)
    if config.sample is not None:
        if config.sample > len(there):
            raise UserError(f"sample={config.sample} is more than the {len(there)} rows that {config.rows} has")
        drawn = np.random.default_rng(config.seed).choice(len(there), config.sample, replace=False)
        chosen = chosen[np.sort(drawn)]
    made = tokenize(rows.select(chosen), tokenizer, tokens)
    kept = np.flatnonzero(np.asarray(made["supervised"]) > 0)
    if not len(kept):
        raise UserError(f"rows={list(config.rows)}: no row has a response within tokens.max_length={tokens.max_length}")
    measured = made.select(kept)
    facts = {
        "read": len(rows),
        "without_text": len(rows) - len(there),
        "without_supervised_token": len(made) - len(kept),
        "measured": len(kept),
        "sha256": fingerprint_dataset(rows.select(chosen[kept])),
        "tokens_sha256": fingerprint_dataset(measured.select_columns(["input_ids", "labels"])),
    }
    return HeldOut(measured, chosen[kept].tolist(), facts)


def check_options(config: EvaluateConfig) -> TokensConfig:
    """Check the options alone, for files that need not be there yet; return those of the tokens, nothing left open.

    Raises:
        UserError: naming the key.
    """
    if not config.rows:
        raise UserError(
            "rows=[] names no file; give files of instruction rows, as in rows=[runs/disperse/held_out.jsonl]"
        )
    if config.launch.strategy not in ("single", "ddp"):
        raise UserError(
            f"launch.strategy={config.launch.strategy} splits a model that is trained; evaluation shares the rows "
            "among whole models: use launch=ddp"
        )
    if config.model.chat_template is not None:
        raise UserError("model.chat_template: the rows are put in the Alpaca prompt; leave it out")
    if config.tokens.drop_unsupervised is not None:
        raise UserError("tokens.drop_unsupervised is for training; a row without a supervised token has no loss anyway")
    return resolved(config.tokens, rules_of(config.variant).tokens)


def _report(
    config: EvaluateConfig,
    rules: DtmRules,
    tokens: TokensConfig,
    held_out: HeldOut,
    losses: list[RowLoss],
    run: Run,
) -> None:
    bad = next(
        (index for index, loss in zip(held_out.indices, losses, strict=True) if not math.isfinite(loss.nll)), None
    )
    if bad is not None:
        raise UserError(
            f"model.name={config.model.name}: the loss of row {bad} is not finite; set model.dtype=float32, or look at "
            "the weights"
        )
    sources = held_out.tokens["source"]
    summaries = summarise(
        losses,
        list(sources),
        confidence=config.confidence,
        resamples=config.resamples,
        seed=config.seed,
        released=rules.batch_measures,
    )
    write_rows(run, held_out.indices, list(sources), losses)
    if config.per_token:
        write_tokens(run, losses)
    results = {
        "model": {"name": config.model.name, "revision": config.model.revision},
        "weights": identity_of(run.record["fingerprints"]["weights"]["model"]),
        "rows": {"files": list(config.rows), **held_out.facts},
        "variant": config.variant,
        "tokens": {name: value for name, value in asdict(tokens).items() if name not in _ELSEWHERE},
        "interval": {name: getattr(config, name) for name in ("confidence", "resamples", "seed")},
        "measures": [asdict(entry) for entry in summaries],
    }
    write_json(run.dir / RESULTS, plain(results))
    write_text(run.dir / "results.csv", as_csv(summaries))
    shown = [(entry.name, entry.loss, entry.low, entry.high) for entry in summaries]
    intervals(shown, run.dir / "plots" / "loss.png", measured="loss, nats per token of the response")
    run.set_metrics(as_metrics(summaries))
    remove_parts(run.dir)
    _print(config, held_out, summaries, run)


def write_rows(run: Run, indices: Sequence[int], sources: Sequence[str | None], losses: Sequence[RowLoss]) -> None:
    """Write ``rows.jsonl``: index among the rows read, source, supervised tokens, Σ loss in nats, correct tokens."""
    lines = [
        {"index": index, "source": source, "tokens": loss.tokens, "nll": loss.nll, "correct": loss.correct}
        for index, source, loss in zip(indices, sources, losses, strict=True)
    ]
    write_text(run.dir / ROWS, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def write_tokens(run: Run, losses: Sequence[RowLoss]) -> None:
    """Write ``tokens.safetensors``: ``ids`` (tokens,), ``losses`` (tokens,) in nats, ``offsets`` (rows + 1,)."""
    counts = [loss.tokens for loss in losses]
    arrays = {
        "ids": np.concatenate([np.asarray(loss.ids, dtype=np.int32) for loss in losses]),
        "losses": np.concatenate([np.asarray(loss.losses, dtype=np.float32) for loss in losses]),
        "offsets": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
    }
    with atomic_path(run.dir / TOKENS) as temporary:
        save_file(arrays, temporary)


def _print(config: EvaluateConfig, held_out: HeldOut, summaries: Sequence[Summary], run: Run) -> None:
    console = result_console()
    console.print(table(summaries, f"{config.model.name}: nats per token of the response", config.confidence))
    facts = held_out.facts
    for count, what in ((facts["without_text"], "no text"), (facts["without_supervised_token"], "no supervised token")):
        if count:
            console.print(f"- {count} of {facts['read']} rows have {what} and were left out")
    if summaries[0].accuracy_released is not None:
        console.print(f"- accuracy as the release computes it ({OVERALL}): {summaries[0].accuracy_released:.4f}")
    files = "results.json, results.csv, rows.jsonl" + (", tokens.safetensors" if config.per_token else "")
    say(f"record, {files} and plot: {run.dir}")
