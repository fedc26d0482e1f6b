"""``radpo pairs``: preference pairs from texts, a language model that goes on with them, and a classifier."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from transformers import PreTrainedTokenizerBase

from reproalign.common.console import say
from reproalign.common.data.load import check_sets, load_set
from reproalign.common.data.records import Message, Prompt, RowError
from reproalign.common.data.sources import Source
from reproalign.common.data.views import View
from reproalign.common.errors import UserError
from reproalign.common.files import sha256_json
from reproalign.common.generation.rules import SamplingRules
from reproalign.common.generation.samplers import SAMPLERS, start_sampling
from reproalign.common.generation.samples import SCORED, Sampled, write_rows
from reproalign.common.generation.sampling import sample_shared
from reproalign.common.invocation import Invocation
from reproalign.common.models.identify import used_weights
from reproalign.common.models.kind import check_language_model
from reproalign.common.models.load import load_tokenizer
from reproalign.common.records import Run
from reproalign.common.verbs.score import score_rows
from reproalign.radpo.classifier import label_column, load_classifier
from reproalign.radpo.config import PairsConfig

PAIRS = "pairs.jsonl"


def pairs(config: PairsConfig, invocation: Invocation) -> None:
    """Sample n continuations of each text's first tokens, and pair the best with the worst by the classifier.

    ``pairs.jsonl`` has the columns of the public pairs of IMDb: text (the prompt), chosen and rejected, which repeat
    it; and their scores. ``scored.jsonl`` has all continuations. Prompts whose continuations all have one score, or
    one of whose two is blank or the other's equal, make no pair. An interrupted run goes on where it stopped.
    """
    rules = _rules(config)
    label_column(config.classifier)  # before hours of sampling
    check_language_model(config.model)
    state, backend = start_sampling(config.backend, config.launch, config.model)
    with Run.open(invocation, is_main=state.is_main_process) as run:
        used_weights(run, "policy", config.model.name, config.model.revision)
        used_weights(run, "classifier", config.classifier.name, config.classifier.revision)
        with state.main_process_first():
            prompts = _prompts(config, load_tokenizer(config.model), run)
        responses = sample_shared(
            prompts,
            run.dir,
            lambda: SAMPLERS[backend](config.model, rules),
            seed=config.seed,
            at_once=max(1, config.batch_size // config.n),
            state=state,
        )
        if not state.is_main_process:
            return
        sampled = [
            Sampled(number, prompt, texts)
            for number, (prompt, texts) in enumerate(zip(prompts, responses, strict=True))
        ]
        scored = score_rows(
            sampled,
            lambda: load_classifier(config.classifier),
            run.dir / SCORED,
            batch_size=config.classifier.batch_size,
        )
        rows = [row for one in scored if (row := best_and_worst(one))]
        if not rows:
            raise UserError("no prompt has two continuations of different scores; raise n or temperature")
        write_rows(run.dir / PAIRS, rows)
        run.add_fingerprint("data", "pairs", sha256_json(rows), made=True, rows=len(rows), backend=backend)
        means = {side: fmean(row[f"{side}_score"] for row in rows) for side in ("chosen", "rejected")}
        run.set_metrics({"prompts": len(scored), "pairs": len(rows), **{f"scores/{k}": v for k, v in means.items()}})
        say(
            f"{len(rows)} pairs of {len(scored)} prompts: {run.dir / PAIRS}; mean score {means['chosen']:.3f} "
            f"(chosen), {means['rejected']:.3f} (rejected)"
        )


def best_and_worst(one: Sampled) -> dict[str, Any] | None:
    """Return a row of the first best and the first worst continuation; None where these make no pair."""
    assert one.scores is not None  # they come from score_rows
    text = one.prompt[0]["content"]
    ends = {"chosen": max(one.scores), "rejected": min(one.scores)}
    sides = {side: one.responses[one.scores.index(score)] for side, score in ends.items()}
    stripped = [side.strip() for side in sides.values()]
    if ends["chosen"] == ends["rejected"] or not all(stripped) or stripped[0] == stripped[1]:
        return None
    return {
        "text": text,
        **{side: text + continuation for side, continuation in sides.items()},
        **{f"{side}_score": score for side, score in ends.items()},
    }


def _rules(config: PairsConfig) -> SamplingRules:
    if config.max_length <= config.prompt_tokens:
        raise UserError(f"max_length={config.max_length} must be more than prompt_tokens={config.prompt_tokens}")
    if config.n < 2:
        raise UserError(f"n={config.n}: a pair needs two continuations at least")
    if not config.temperature:
        raise UserError("temperature=0 would make all continuations the same; raise it")
    rules = SamplingRules(
        n=config.n,
        max_new_tokens=config.max_length - config.prompt_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        batch_size=config.batch_size,
        clean="none",
    )
    rules.check()
    return rules


def _prompts(config: PairsConfig, tokenizer: PreTrainedTokenizerBase, run: Run) -> list[list[Message]]:
    check_sets(config.data)
    texts: list[str] = []
    for label, entry in config.data.sets.items():
        loaded = load_set(label, entry, config.data, TEXTS, seed=config.seed, rejects_dir=run.rejects)
        facts = loaded.facts["train"]
        run.add_fingerprint("data", label, facts.pop("sha256", None) or sha256_json(loaded.train), **facts)
        texts += loaded.train
    texts = texts[: config.data.max_rows]
    return [[{"role": "user", "content": beginning(tokenizer, text, config.prompt_tokens)}] for text in texts]


def beginning(tokenizer: PreTrainedTokenizerBase, text: str, tokens: int) -> str:
    """Return the first ``tokens`` tokens of a text, as text, without special ones."""
    ids = tokenizer(text, add_special_tokens=False, truncation=True, max_length=tokens)["input_ids"]
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def _texts(prompt: Prompt, source: Source) -> list[str]:
    if not isinstance(prompt.messages, str) or not prompt.messages:
        raise RowError(f"source '{source.name}' has no texts; give rows with `text`")
    return [prompt.messages]


TEXTS: View[str, str] = View(_texts, lambda text: text)
