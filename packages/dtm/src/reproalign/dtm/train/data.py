"""What a model is trained on: files, clusters, filter, replay, and how many rows came to what."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from reproalign.common.data.cache import fingerprint_dataset
from reproalign.common.data.reading import local_path
from reproalign.common.errors import UserError
from reproalign.common.files import sha256_file
from reproalign.common.records import Run
from reproalign.common.text.shown import used_rows
from reproalign.dtm.rows import (
    DISPERSAL,
    HELD_OUT,
    LABELS,
    ROWS,
    Selection,
    check_clusters,
    digest,
    is_placeholder,
    parse_clusters,
    parse_selection,
    read_labels,
    read_rows,
    selected_order,
)
from reproalign.dtm.tokens import TokensConfig, supervised_only, tokenize
from reproalign.dtm.train.config import FilterConfig, TrainConfig
from reproalign.dtm.train.mixture import good_enough, replayed


@dataclass(frozen=True)
class InstructionRows:
    """Tokenised rows.

    Attributes:
        train: in the order of the selection.
        held_out: for evaluations, each with a supervised token; None if there are none.
    """

    train: Dataset
    held_out: Dataset | None


@dataclass(frozen=True)
class Sources:
    """The files of a run.

    Attributes:
        selection: rows, labels, clusters.
        held_out: files of held-out rows.
    """

    selection: Selection
    held_out: list[str]


def find_sources(config: TrainConfig) -> Sources:
    """Find the files that ``config`` names, before anything is written.

    Raises:
        UserError: for files that are not there, or contradict each other.
    """
    if config.dispersal is None:
        return Sources(parse_selection(config.rows, config.labels, config.cluster), list(config.held_out))
    if config.rows or config.labels:
        raise UserError("dispersal has rows and labels of its own; remove rows and labels, or dispersal")
    folder = Path(config.dispersal).expanduser()
    for name in (ROWS, LABELS):
        if not (folder / name).is_file():
            raise UserError(
                f"dispersal={config.dispersal}: there is no {name}; give the folder of a finished 'dtm disperse' run"
            )
    _check_facts(folder)
    held_out = list(config.held_out)
    if not held_out and str(config.trainer.get("eval_strategy", "no")) != "no" and (folder / HELD_OUT).is_file():
        held_out = [str(folder / HELD_OUT)]
    clusters = parse_clusters(config.cluster)
    return Sources(Selection([str(folder / ROWS)], [str(folder / LABELS)], clusters), held_out)


def load(
    config: TrainConfig, sources: Sources, tokens: TokensConfig, tokenizer: PreTrainedTokenizerBase, run: Run
) -> InstructionRows:
    """Read, select, filter and tokenise the rows, mix texts in, and record what came of it.

    Args:
        config: of the run.
        sources: its files.
        tokens: how rows become token ids, resolved.
        tokenizer: of the model.
        run: the open record.

    Raises:
        UserError: if nothing is left to train on, and for what is wrong in the files.
    """
    rows, order, counts = select(config, sources.selection)
    for name, path in _named_files(sources, config.filter):
        run.add_fingerprint("data", name, digest(path), path=str(path))
    train = tokenize(rows.select(order), tokenizer, tokens)
    counts["unsupervised"] = sum(count == 0 for count in train["supervised"])
    if counts["unsupervised"] == len(train):
        raise UserError(
            f"none of the {len(train)} selected rows has a token to train on within tokens.max_length="
            f"{tokens.max_length}; raise it, or look at their responses"
        )
    if tokens.drop_unsupervised:
        train = supervised_only(train)
    texts = replayed(config.replay, len(train), config.seed, tokenizer, tokens)
    if texts is not None:
        counts["replayed"] = len(texts)
        run.add_fingerprint("data", "replay", fingerprint_dataset(texts), rows=len(texts))
        train = train.remove_columns(["source"])
        train = concatenate_datasets([train, texts.cast(train.features)])
    counts |= {"trained": len(train), "supervised_tokens": sum(train["supervised"])}
    run.set("rows", counts)
    run.add_fingerprint("data", "train rows", fingerprint_dataset(train), rows=len(train))
    used_rows(run, tokenizer, train)
    held_out = None
    if sources.held_out:
        held_out = _held_out(sources.held_out, tokens, tokenizer)
        run.add_fingerprint("data", "held-out rows", fingerprint_dataset(held_out), rows=len(held_out))
    return InstructionRows(train, held_out)


def select(config: TrainConfig, selection: Selection) -> tuple[Dataset, NDArray[np.int64], dict[str, int]]:
    """Return the rows, the indices of those trained on in their order, and how many came to what.

    Raises:
        UserError: for labels of other rows, clusters without rows, and if no row is left.
    """
    tables = [read_rows([path], cache_dir=config.tokens.cache_dir) for path in selection.rows]
    rows = concatenate_datasets(tables) if len(tables) > 1 else tables[0]
    labels = np.zeros(len(rows), dtype=np.int64)
    if selection.labels:
        parts = zip(selection.labels, tables, strict=True)
        labels = np.concatenate([read_labels(path, len(table)) for path, table in parts])
        check_clusters(labels, selection.clusters)
    usable = np.array([not is_placeholder({"instruction": a, "output": b}) for a, b in _pairs(rows)], dtype=bool)
    good = good_enough(config.filter, selection.rows, [len(table) for table in tables])
    kept = np.flatnonzero(usable & good)
    order = kept[selected_order(labels[kept], selection.clusters, config.seed, config.data_ratio)]
    of_clusters = len(rows) if selection.clusters is None else int(np.isin(labels, selection.clusters).sum())
    counts = {
        "read": len(rows),
        "placeholders": int((~usable).sum()),
        "filtered": int((usable & ~good).sum()),
        "of_clusters": of_clusters,
        "selected": len(order),
    }
    if not len(order):
        raise UserError(
            f"no row is left to train on: of {len(rows)} rows {of_clusters} are of the cluster, "
            f"{counts['placeholders']} are empty, {counts['filtered']} are filtered, and data_ratio="
            f"{config.data_ratio} of the rest is none"
        )
    return rows, order, counts


def _pairs(rows: Dataset) -> Iterator[tuple[Any, Any]]:
    for batch in rows.select_columns(["instruction", "output"]).iter(batch_size=10_000):
        yield from zip(batch["instruction"], batch["output"], strict=True)


def _held_out(files: Sequence[str], tokens: TokensConfig, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    rows = read_rows(files, key="held_out", cache_dir=tokens.cache_dir)
    kept = [n for n, (a, b) in enumerate(_pairs(rows)) if not is_placeholder({"instruction": a, "output": b})]
    made = supervised_only(tokenize(rows.select(kept), tokenizer, tokens))
    if not len(made):
        raise UserError(
            f"held_out={list(files)}: no row has a token to measure within tokens.max_length={tokens.max_length}"
        )
    return made


def _named_files(sources: Sources, filtering: FilterConfig) -> Iterator[tuple[str, Path]]:
    selection = sources.selection
    for name, files in (
        ("rows", selection.rows),
        ("labels", selection.labels),
        ("held-out", sources.held_out),
        ("scores", filtering.scores),
    ):
        for number, path in enumerate(files):
            yield (name if len(files) == 1 else f"{name} {number}"), local_path(path, key=name)


def _check_facts(folder: Path) -> None:
    """Refuse rows or labels that are not what the dispersal wrote."""
    path = folder / DISPERSAL
    if not path.is_file():
        return
    try:
        written = json.loads(path.read_text(encoding="utf-8"))["sha256"]
        expected = [(folder / name, sha256) for name, sha256 in written.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not what 'dtm disperse' wrote; disperse again, or remove the file") from error
    for file, sha256 in expected:
        if file.is_file() and sha256_file(file) != sha256:
            raise UserError(f"dispersal={folder}: {file.name} was changed since it was written; disperse again")
