"""``dtm statistics``: Fisher information or Gram matrices of a model on the rows of a cluster."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from reproalign.common.data.cache import fingerprint_dataset
from reproalign.common.errors import UserError, counted
from reproalign.common.files import space_needed
from reproalign.common.invocation import Invocation
from reproalign.common.launch.children import Child, plan_child
from reproalign.common.mappings import flatten
from reproalign.common.merging.adapters import Adapter
from reproalign.common.merging.settings import parse_size
from reproalign.common.models.adapters import adapter_folder
from reproalign.common.models.identify import identify_weights
from reproalign.common.models.kind import check_language_model
from reproalign.common.models.load import load_causal_lm, load_tokenizer, model_path
from reproalign.common.options.words import as_word
from reproalign.common.records import Run, fingerprint_folder
from reproalign.common.training.model_statistics import (
    Request,
    choose_tensors,
    measurable,
    write_model_statistics,
)
from reproalign.dtm.cli import STATISTICS
from reproalign.dtm.merge.config import StatisticsConfig
from reproalign.dtm.merge.sub_models import run_of
from reproalign.dtm.rules import rules_of
from reproalign.dtm.tokens import TokensConfig, resolved, supervised_only, tokenize
from reproalign.dtm.train.config import TrainConfig
from reproalign.dtm.train.data import Sources, find_sources, select

# Keys of `dtm train` that say which rows a model was trained on, and how they became tokens.
OF_ROWS = ("seed", "variant", "dispersal", "rows", "labels", "cluster", "data_ratio")


def statistics(config: StatisticsConfig, invocation: Invocation) -> None:
    """Measure, and leave a run: ``run.json`` beside ``statistics``, which ``dtm merge statistics=[…]`` reads.

    Raises:
        UserError: for a mistake in the options, the rows or the model.
    """
    sources, tokens, request = _check(config)
    tokenizer = load_tokenizer(config.model)
    with Run.open(invocation) as run, space_needed(f"output_dir={config.output_dir}"):
        rows, order, counts = select(_as_training(config), sources.selection)
        drawn = order if config.max_rows is None else order[: config.max_rows]
        made = supervised_only(tokenize(rows.select(drawn), tokenizer, tokens))
        if not len(made):
            raise UserError(
                f"none of the {len(drawn)} rows has a token to measure within tokens.max_length={tokens.max_length}"
            )
        run.add_fingerprint("data", "rows", fingerprint_dataset(made), rows=len(made))
        weights = identify_weights(config.model.name, config.model.revision)
        run.add_fingerprint("weights", "model", weights, name=config.model.name, revision=config.model.revision)
        run.set("rows", {**counts, "drawn": len(drawn), "measured": len(made)})
        model: Any = load_causal_lm(config.model, trainable=False)
        names = _tensors(config, model)
        if torch.accelerator.is_available():
            model.to(torch.accelerator.current_accelerator())
        folder = run.dir / "statistics"
        found = write_model_statistics(folder, model, made, names, request, named=config.model.name)
        run.add_fingerprint("weights", "statistics", fingerprint_folder(folder), made=True)
        run.set_metrics(found)
    print(
        f"{config.kind} of {found['tensors']} tensors from {found['rows']} rows ({found['tokens']} tokens) in "
        f"{counted(found['passes'], 'pass')}: {folder}"
    )


def plan_statistics(parent: Invocation, model: str, number: int, kind: str, max_rows: int | None) -> Child:
    """Compose the run that measures a sub-model on the rows it was trained on.

    Args:
        parent: the merge.
        model: folder of the sub-model.
        number: of the sub-model.
        kind: of the statistics.
        max_rows: None: as ``dtm statistics`` has it.

    Raises:
        UserError: if no record says which rows the sub-model was trained on.
    """
    run = run_of(model)
    config = run[1].get("config", {}) if run else {}
    if not (config.get("dispersal") or config.get("rows")):
        raise UserError(
            f"statistics=auto: no record beside '{model}' says which rows it was trained on; measure it by "
            "`dtm statistics` and give statistics=[…]"
        )
    given = {key: config[key] for key in OF_ROWS if config.get(key) not in (None, [])}
    given |= {f"tokens.{key}": value for key, value in flatten(config.get("tokens") or {}).items() if value is not None}
    given |= {"kind": kind, "model.name": model, "model.dtype": (config.get("model") or {}).get("dtype", "auto")}
    given |= {} if max_rows is None else {"max_rows": max_rows}
    return plan_child(parent, f"statistics-{number}", STATISTICS, [as_word(key, value) for key, value in given.items()])


def _check(config: StatisticsConfig) -> tuple[Sources, TokensConfig, Request]:
    if config.kind == "gram" and config.targets != "data":
        raise UserError("targets has no meaning for kind=gram; remove it")
    if config.model.quantization:
        raise UserError("model.quantization has no meaning here: gradients are of whole weights; remove it")
    if config.model.chat_template is not None:
        raise UserError("model.chat_template: the rows are put in the Alpaca prompt; leave it out")
    tokens = resolved(config.tokens, rules_of(config.variant).tokens)
    request = Request(config.kind, config.targets, parse_size(config.memory, "memory"))
    model_path(config.model.name)
    check_language_model(config.model)
    return find_sources(_as_training(config)), tokens, request


def _as_training(config: StatisticsConfig) -> TrainConfig:
    same = {key: getattr(config, key) for key in (*OF_ROWS, "output_dir", "tokens")}
    return TrainConfig(**same)


def _tensors(config: StatisticsConfig, model: PreTrainedModel) -> list[str]:
    """Return the tensors that the patterns name; without any, what an adapter changes, or all of a full model."""
    known = measurable(model, config.kind)
    if config.tensors is not None:
        return choose_tensors(known, config.tensors)
    adapter = adapter_folder(model_path(config.model.name))
    if adapter is None:
        return list(known)
    opened = Adapter(config.model.name, adapter)
    changed = opened.modules.keys() | opened.saved.keys()
    return [name for name in known if name in changed]
