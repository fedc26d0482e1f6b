"""Rows left out by a score (Deita), and pre-training texts put between the rows (Replay)."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from datasets import Dataset, Features, Value
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from reproalign.common.data.cache import cache_folder, cached, fingerprint_dataset, fingerprint_tokenizer, map_cached
from reproalign.common.data.reading import Row, local_path, read_hub, read_local
from reproalign.common.errors import UserError, counted
from reproalign.common.records.handed_on import intact
from reproalign.dtm.rows import check_length, digest
from reproalign.dtm.tokens import TokensConfig
from reproalign.dtm.train.config import FilterConfig, ReplayConfig


def check_mixture(replay: ReplayConfig, filtering: FilterConfig) -> None:
    """Refuse options that contradict each other.

    Raises:
        UserError: naming the keys.
    """
    if replay.path is not None and replay.name is not None:
        raise UserError("replay.path and replay.name both say where texts come from; give one")
    if replay.path is None and replay.name is None and replay != ReplayConfig():
        raise UserError(
            "replay.*: without replay.path or replay.name nothing is mixed in; give one, or leave these out"
        )
    if replay.name is None and replace(replay, path=None, column="text", ratio=1.0) != ReplayConfig():
        raise UserError("replay.config_name, split and revision are of a Hub data set; set replay.name, or remove them")
    if filtering.column is not None and filtering.scores:
        raise UserError("filter.column and filter.scores both say where scores come from; give one")
    if filtering.column is None and not filtering.scores and filtering != FilterConfig():
        raise UserError("filter.above has no meaning without scores; set filter.column or filter.scores")


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
    source, identity = _texts(config)
    count = int(rows * config.ratio)
    with tempfile.TemporaryDirectory(prefix="reproalign-") as temporary:
        texts = cached(
            cache_folder(tokens.cache_dir),
            ["dtm replay", identity, config.column, count, rows, config.ratio, seed],
            lambda: _draw(config, source, count, rows, seed, temporary),
        )
    end = [tokenizer.eos_token_id] if tokens.append_eos else []
    longest = tokens.max_length or tokenizer.model_max_length
    made = [fingerprint_dataset(texts), fingerprint_tokenizer(tokenizer), longest, end]
    return map_cached(
        texts,
        partial(_whole, tokenizer, end, longest),
        ["dtm replay tokens", *made],
        cache_dir=tokens.cache_dir,
        num_proc=tokens.num_proc,
        desc="tokenising texts",
        batched=True,
        remove_columns=["text"],
    )


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
            raise UserError(
                f"filter.scores: {counted(len(config.scores), 'file')} for {counted(len(files), 'file')} of rows"
            )
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
        content = json.loads(intact(Path(path).expanduser()).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"filter.scores: {path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, list):
        raise UserError(f"filter.scores: {path}: a JSON array of scores is needed, one for each row")
    check_length(content, count, path, key="filter.scores", what="scores")
    return np.array([_score(value, f"filter.scores: {path}: score {n}") for n, value in enumerate(content)])


def _texts(config: ReplayConfig) -> tuple[Callable[[], Iterator[Row]], list[str | None]]:
    """Return what opens the texts anew each time, and what identifies them."""
    if config.path is not None:
        path = local_path(config.path, key="replay.path")
        return partial(read_local, path), [digest(path)]
    assert config.name is not None
    where = (config.name, config.config_name, config.split, config.revision)
    _, commit = read_hub(*where, key="replay.path")
    return lambda: read_hub(*where, key="replay.path")[0], [*where, commit]


def _draw(
    config: ReplayConfig, source: Callable[[], Iterator[Row]], count: int, rows: int, seed: int, folder: str
) -> Dataset:
    """Return the drawn texts in their own order; they are read twice, so that never all of them are in memory."""
    total = sum(1 for row in source() if _text(row, config.column) is not None)
    if not 0 < count <= total:
        raise UserError(
            f"replay: {total} texts for {rows} rows, of which replay.ratio={config.ratio} needs {count}; give more "
            "texts, or another ratio"
        )
    drawn = np.zeros(total, dtype=bool)
    drawn[np.random.default_rng(seed).permutation(total)[:count]] = True
    with (Path(folder) / "texts.jsonl").open("w", encoding="utf-8") as file:
        for row, wanted in zip(source(), drawn, strict=True):
            if wanted:
                file.write(json.dumps({"text": row.values[config.column]}) + "\n")
    found = Dataset.from_json(file.name, cache_dir=folder, features=Features({"text": Value("string")}))
    return cast(Dataset, found)


def _whole(
    tokenizer: PreTrainedTokenizerBase, end: list[int], longest: int, batch: Mapping[str, list[str]]
) -> dict[str, list[Any]]:
    ids = [[*row, *end][:longest] for row in tokenizer(batch["text"], verbose=False)["input_ids"]]
    return {"input_ids": ids, "labels": ids, "supervised": [max(len(row) - 1, 0) for row in ids]}


def _score(value: Any, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise UserError(f"{place} is {value!r}; a number is needed")
    return float(value)


def _text(row: Row, column: str) -> str:
    text = row.values.get(column)
    if row.problem or not isinstance(text, str):
        raise UserError(f"replay: {row.place}: {row.problem or f'no text in column {column!r}; set replay.column'}")
    return text
