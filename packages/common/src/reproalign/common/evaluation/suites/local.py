"""lm-eval's tasks on local files in the original rows: which file is which split, and what a row needs.

A built-in task gets its rows from here in place of the Hub (``custom_dataset``); everything else, the prompts and
metrics, stays as lm-eval has it. Every split is read by itself: files in which a column is empty throughout, or has
another type, do not fit together as one Arrow data set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset

from reproalign.common.data.reading import SUFFIXES, read_local
from reproalign.common.errors import UserError, did_you_mean

SPLITS = ("test_split", "validation_split", "training_split", "fewshot_split")  # the first one there is, is evaluated


def task_folders(value: Any, names: Mapping[str, str], key: str) -> dict[str, Any]:
    """Return what a group's folder gives to each of its subtasks: ``<folder>/<name>``.

    Args:
        value: the folder, as the user gave it.
        names: subtask -> name of its folder, the Hub's name of its part of the data set.
        key: where the user gave it.

    Returns:
        subtask -> folder; those that have none are left out.

    Raises:
        UserError: if it is no folder, or has none of them.
    """
    if not isinstance(value, str) or not Path(value).expanduser().is_dir():
        raise UserError(f"{key}={value}: no such folder; a group needs one with a folder for each of its subtasks")
    folder = Path(value).expanduser()
    found = {task: str(folder / name) for task, name in names.items() if (folder / name).is_dir()}
    if not found:
        raise UserError(f"{key}={value}: no folder for any subtask, such as {next(iter(names.values()))}/")
    return found


def local_overrides(config: Mapping[str, Any], value: Any, shots: int, key: str) -> tuple[dict[str, Any], list[Path]]:
    """Return the fields of a task's configuration that point it at local files, and the files.

    Args:
        config: of the task, from which the names of its splits are taken.
        value: a file (of the split that is evaluated), a folder with files named by splits, or split -> file.
        shots: worked examples in the prompt; they have to come from somewhere.
        key: where the user gave ``value``.

    Raises:
        UserError: if a file or a split that is needed is missing.
    """
    splits = {field: config.get(field) for field in SPLITS}
    known = [name for name in dict.fromkeys(splits.values()) if name]
    files = _files(value, splits, known, key)
    kept = {field: name if name in files else None for field, name in splits.items()}
    if not kept["test_split"] and not kept["validation_split"]:
        wanted = splits["test_split"] or splits["validation_split"]
        raise UserError(f"{key}: the rows to evaluate are missing; give the file of split '{wanted}'")
    pool = splits["fewshot_split"] or splits["training_split"] or splits["validation_split"]
    if shots and "samples" not in (config.get("fewshot_config") or {}) and pool and pool not in files:
        raise UserError(f"{key}: the {shots} worked examples come from split '{pool}'; add {key}.{pool}=FILE")
    overrides = {
        "custom_dataset": partial(read_splits, {split: str(path) for split, path in files.items()}),
        "dataset_kwargs": None,
        **kept,
    }
    return overrides, list(files.values())


def read_splits(files: Mapping[str, str], **_: Any) -> dict[str, Dataset]:
    """Return the rows of each split; lm-eval calls this with the metadata of the task."""
    return {split: Dataset.from_list([row.values for row in read_local(Path(path))]) for split, path in files.items()}


def check_columns(files: Sequence[Path], columns: Sequence[str], key: str) -> None:
    """Check that every row of ``files`` has a value in every column; ``a.b`` is column ``b`` in column ``a``.

    Raises:
        UserError: naming file, line and column.
    """
    for path in files:
        for row in read_local(path):
            if row.problem:
                raise UserError(f"{row.place}: {row.problem}")
            for column in columns:
                if _value(row.values, column) is None:
                    raise UserError(
                        f"{row.place}: column '{column}' is missing or empty ({key}); needed are {', '.join(columns)}"
                    )


def _value(values: Any, column: str) -> Any:
    for part in column.split("."):
        if not isinstance(values, dict):
            return None
        values = values.get(part)
    return values


def _files(value: Any, splits: Mapping[str, Any], known: Sequence[str], key: str) -> dict[str, Path]:
    if isinstance(value, dict):
        for split in value:
            if split not in known:
                raise UserError(
                    f"{key}.{split}: the task has no such split{did_you_mean(split, known)}; it has {', '.join(known)}"
                )
        return {split: _existing(path, f"{key}.{split}") for split, path in value.items()}
    path = _existing(value, key)
    if path.is_file():
        return {str(splits["test_split"] or splits["validation_split"]): path}
    found = {
        file.name.removesuffix(suffix): file
        for file in sorted(path.iterdir())
        for suffix in SUFFIXES
        if file.name.endswith(suffix) and file.name.removesuffix(suffix) in known
    }
    if not found:
        raise UserError(
            f"{key}={path}: no file named by a split of the task ({', '.join(known)}), such as {known[0]}.jsonl"
        )
    return found


def _existing(value: Any, key: str) -> Path:
    path = Path(str(value)).expanduser()
    if not path.exists():
        raise UserError(f"{key}={value}: no such file; check the path")
    return path.resolve()
