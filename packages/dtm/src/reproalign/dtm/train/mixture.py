"""Rows left out by a score (Deita), and pre-training texts put between the rows (Replay)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from reproalign.common.data.reading import Row, local_path, read_hub, read_local
from reproalign.common.errors import UserError
from reproalign.dtm.rows import check_length
from reproalign.dtm.tokens import TokensConfig
from reproalign.dtm.train.config import FilterConfig, ReplayConfig


def check_mixture(replay: ReplayConfig, filtering: FilterConfig) -> None:
    """Refuse options that contradict each other.

    Raises:
        UserError: naming the keys.
    """
    if replay.path is not None and replay.name is not None:
        raise UserError("replay.path and replay.name both say where texts come from; give one")
    if not 0 < replay.ratio < float("inf"):
        raise UserError(f"replay.ratio={replay.ratio} must be above 0 and finite")
    if filtering.column is not None and filtering.scores:
        raise UserError("filter.column and filter.scores both say where scores come from; give one")
    if filtering.above != filtering.above:
        raise UserError("filter.above=nan compares with nothing; give a number")


def replayed(
    config: ReplayConfig, rows: int, seed: int, tokenizer: PreTrainedTokenizerBase, tokens: TokensConfig
) -> Dataset | None:
    """Return tokenised texts to mix with ``rows`` instruction rows, or None without replay.

    ⌊rows · ratio⌋ texts, drawn without replacement by ``seed``; every token but the first is supervised, EOS stands at
    the end where it does at a response's.

    Raises:
        UserError: if there are too few texts, or a row has none.
    """
    if config.path is None and config.name is None:
        return None
    if config.path is not None:
        source: Iterator[Row] = read_local(local_path(config.path, key="replay.path"))
    else:
        assert config.name is not None
        source, _ = read_hub(config.name, config.config_name, config.split, config.revision, key="replay.path")
    texts = [_text(row, config.column) for row in source]
    count = int(rows * config.ratio)
    if not 0 < count <= len(texts):
        raise UserError(
            f"replay: {len(texts)} texts for {rows} rows, of which replay.ratio={config.ratio} needs {count}; give "
            "more texts, or another ratio"
        )
    drawn = np.sort(np.random.default_rng(seed).permutation(len(texts))[:count])
    end = [tokenizer.eos_token_id] if tokens.append_eos else []
    longest = tokens.max_length or tokenizer.model_max_length
    ids = [[*tokenizer(texts[index], verbose=False)["input_ids"], *end][:longest] for index in drawn]
    made = {"input_ids": ids, "labels": ids, "supervised": [max(len(row) - 1, 0) for row in ids]}
    return Dataset.from_dict(made)


def good_enough(config: FilterConfig, files: Sequence[str], counts: Sequence[int]) -> NDArray[np.bool_]:
    """Say which rows have a score above ``filter.above``; all without a filter, and an empty row never with one.

    Args:
        config: column or files of scores.
        files: of the rows.
        counts: rows of each file.

    Raises:
        UserError: for scores of other rows, or what is no number.
    """
    if config.column is None and not config.scores:
        return np.ones(sum(counts), dtype=bool)
    if config.scores:
        if len(config.scores) != len(files):
            raise UserError(f"filter.scores: {len(config.scores)} file(s) for {len(files)} file(s) of rows")
        pairs = zip(config.scores, counts, strict=True)
        scores = np.concatenate([read_scores(path, count) for path, count in pairs])
    else:
        column = str(config.column)
        rows = (row for path in files for row in read_local(local_path(path, key="rows")))
        found = [
            _score(row.values.get(column), f"{row.place}: filter.column={column}") if row.values else -np.inf
            for row in rows
        ]
        scores = np.array(found)
    good: NDArray[np.bool_] = scores > config.above
    return good


def read_scores(path: str, count: int) -> NDArray[np.float64]:
    """Read a file of scores: a JSON array of numbers, one for each row.

    Raises:
        UserError: for a file that cannot be read, has another length, or holds what is no number.
    """
    try:
        content = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"filter.scores: {path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, list):
        raise UserError(f"filter.scores: {path}: a JSON array of scores is needed, one for each row")
    check_length(content, count, path, key="filter.scores", what="scores")
    return np.array([_score(value, f"filter.scores: {path}: score {n}") for n, value in enumerate(content)])


def _score(value: Any, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise UserError(f"{place} is {value!r}; a number is needed")
    return float(value)


def _text(row: Row, column: str) -> str:
    text = row.values.get(column)
    if row.problem or not isinstance(text, str):
        raise UserError(f"replay: {row.place}: {row.problem or f'no text in column {column!r}; set replay.column'}")
    return text
