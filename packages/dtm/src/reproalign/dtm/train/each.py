"""``dtm train clusters=…``: a sub-model on each cluster; ``variations=…``: a model with each of several settings.

Every model is a run of its own below this one, as `dtm train` would make it, so each can be resumed and replayed alone.
The first gives what is merged; models of several settings on the same rows are the ingredients of a uniform soup
(arXiv 2203.05482).
"""

from __future__ import annotations

import shlex
from dataclasses import fields

import numpy as np
from rich.table import Table

from reproalign.common.console import result_console
from reproalign.common.errors import UserError, did_you_mean
from reproalign.common.invocation import Invocation, structured
from reproalign.common.launch.children import Child, plan_child
from reproalign.common.launch.together import run_children
from reproalign.common.mappings import flatten
from reproalign.common.options.compose import compose
from reproalign.common.options.keys import known_keys
from reproalign.common.options.words import as_word
from reproalign.common.records import Run
from reproalign.common.records.fingerprints import identity_of
from reproalign.common.records.folder import read_record
from reproalign.dtm.cli import TRAIN
from reproalign.dtm.rows import check_clusters, parse_clusters, read_labels
from reproalign.dtm.train.config import TrainConfig, TrainEachConfig
from reproalign.dtm.train.data import find_sources
from reproalign.dtm.train.verb import check_train

OWN = {field.name for field in fields(TrainEachConfig)} - {field.name for field in fields(TrainConfig)}


def train_each(config: TrainEachConfig, invocation: Invocation) -> None:
    """Train every model as a child run, one after the other or spread over the visible GPUs.

    Raises:
        UserError: for a mistake in the options, those of the children included, before anything is run.
        ReportedError: if a child failed; the others are kept, and the same command goes on.
    """
    children = make_children(config, invocation)
    with Run.open(invocation) as run:
        folders = run_children(run, children, at_once=config.at_once)
        records = {child.name: read_record(folder) for child, folder in zip(children, folders, strict=True)}
        for name, record in records.items():
            weights = identity_of(record["fingerprints"]["weights"]["model"])
            run.add_fingerprint("weights", name, weights, made=True, path=str(run.dir / name / "model"))
        starts = {name: record["adapter_start"] for name, record in records.items()}
        run.set("same_start", len({str(start) for start in starts.values()}) == 1)
        run.set_metrics({name: {**record["rows"], **record["metrics"]} for name, record in records.items()})
        _report(run)


def show_plan(config: TrainEachConfig, invocation: Invocation) -> None:
    """Print the command lines of the child runs."""
    for child in make_children(config, invocation):
        print(shlex.join(child.invocation.command))


def make_children(config: TrainEachConfig, invocation: Invocation) -> list[Child]:
    """Compose the child runs.

    Raises:
        UserError: for options that contradict each other, or a mistake in a child's, naming the child.
    """
    if config.launch.slurm:
        raise UserError("launch=slurm prints the script of one run; give one for each cluster, with cluster=N")
    if (config.clusters is None) == (not config.variations):
        raise UserError("give either clusters=all (or ids, 0+2) or variations=[{…},{…}]")
    if config.clusters is not None and config.cluster is not None:
        raise UserError("cluster trains one model, clusters one on each; remove one of the two")
    common = _common_words(invocation)
    if config.clusters is not None:
        named = {f"cluster-{cluster}": [as_word("cluster", str(cluster))] for cluster in _clusters(config)}
    else:
        named = {f"variation-{number}": _variation(given, number) for number, given in enumerate(config.variations)}
    children = [plan_child(invocation, name, TRAIN, [*common, *words]) for name, words in named.items()]
    for child in children:
        try:
            check_train(structured(child.invocation.schema, child.invocation.config))
        except UserError as error:
            raise UserError(f"{child.name}: {error}") from error
    return children


def _common_words(invocation: Invocation) -> list[str]:
    """Return the words for all that differs from what `dtm train` has without any."""
    needed = [as_word("output_dir", "-"), as_word("model.name", "-")]
    default = flatten(compose(invocation.package, TRAIN.config_name, TRAIN.schema, needed).config)
    given = flatten({key: value for key, value in invocation.config.items() if key not in OWN | {"output_dir"}})
    return [as_word(key, value) for key, value in given.items() if key not in default or value != default[key]]


def _clusters(config: TrainEachConfig) -> list[int]:
    """Return the ids of the clusters that a sub-model is trained on.

    Raises:
        UserError: for ids that no row has.
    """
    selection = find_sources(config).selection
    if not selection.labels:
        raise UserError(f"clusters={config.clusters} needs labels; set labels=[FILE] or dispersal=FOLDER")
    labels = np.concatenate([read_labels(path) for path in selection.labels])
    if config.clusters == "all":
        return np.unique(labels).tolist()  # type: ignore[no-any-return]
    asked = parse_clusters(config.clusters) or []
    check_clusters(labels, asked, key="clusters")
    if len(set(asked)) < len(asked):
        raise UserError(f"clusters={config.clusters} names a cluster twice")
    return asked


def _variation(given: dict[str, object], number: int) -> list[str]:
    flat = flatten(dict(given))
    for key in flat:
        if key.partition(".")[0] in OWN | {"output_dir", "cluster", "resume"}:
            raise UserError(f"variations[{number}]: {key} is not an option of the single models; remove it")
        if key not in known_keys(TrainConfig) and not key.startswith("trainer."):
            hint = did_you_mean(key, known_keys(TrainConfig))
            raise UserError(f"variations[{number}]: unknown key '{key}'{hint}")
    return [as_word(key, value) for key, value in flat.items()]


def _report(run: Run) -> None:
    table = Table("model", "rows", "supervised tokens", "held-out loss", header_style="bold")
    for name, found in run.record["metrics"].items():
        loss = found.get("eval_loss")
        loss_text = "-" if loss is None else f"{loss:.4f}"
        table.add_row(name, f"{found['trained']:,}", f"{found['supervised_tokens']:,}", loss_text)
    console = result_console()
    console.print(table)
    console.print(f"models and records: {run.dir}")
