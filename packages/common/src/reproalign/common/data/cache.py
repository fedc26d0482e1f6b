"""Prepared data kept on disk under the fingerprint of everything it was made from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import (
    Dataset,
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    load_from_disk,
)
from platformdirs import user_cache_path
from transformers import PreTrainedTokenizerBase

from reproalign.common.console import has_bars
from reproalign.common.files import sha256_json
from reproalign.common.integrity import SMALL, make_whole
from reproalign.common.leftovers import sweep_dead

FORMAT = 2  # raised when prepared data made by older code must not be read


def cache_folder(cache_dir: str | None) -> Path:
    """Return the folder for prepared data: ``cache_dir``, ``$REPROALIGN_CACHE``, or the user's cache folder."""
    chosen = cache_dir or os.environ.get("REPROALIGN_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path("reproalign")


def fingerprint_dataset(dataset: Dataset) -> str:
    """Return the SHA-256 of a data set's rows, in order, column names included."""
    total = hashlib.sha256(json.dumps(dataset.column_names).encode())
    for row in dataset:
        total.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode())
    return total.hexdigest()


def fingerprint_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 of what a tokenizer does: its model, special tokens and chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return sha256_json([model, special, tokenizer.chat_template])


def cached(folder: Path, parts: list[Any], build: Callable[[], Dataset]) -> Dataset:
    """Return the data set that ``build`` makes, from ``folder`` if it was made from equal ``parts`` before.

    With several processes the first one builds and the others read. What was damaged since is built again
    (:func:`~reproalign.common.integrity.make_whole`), and never mapped into memory, where it could end the process.
    """
    path = folder / "prepared" / sha256_json([FORMAT, *parts])[:32]

    def make(target: Path) -> None:
        before = are_progress_bars_disabled()
        if not has_bars():
            disable_progress_bars()
        try:
            built = build()
            disable_progress_bars()  # the building showed its progress; the saving takes no time
            built.save_to_disk(target)
        finally:
            if not before:
                enable_progress_bars()

    state = PartialState()
    with state.main_process_first():
        # What one process of a machine has read and found whole the others need not read for that again.
        make_whole(path, make, largest=None if state.is_local_main_process else SMALL)
        sweep_dead(path)  # `datasets` writes into the folder of what it maps
        return load_from_disk(str(path))  # type: ignore[return-value]


def map_cached(
    dataset: Dataset,
    build: Callable[[Any], dict[str, Any]],
    parts: list[Any],
    *,
    cache_dir: str | None,
    num_proc: int | None,
    desc: str,
    **options: Any,
) -> Dataset:
    """Return ``dataset.map(build, **options)``, kept under ``parts`` (see :func:`cached`).

    Args:
        dataset: to be mapped.
        build: as ``datasets`` takes it.
        parts: all that the result depends on.
        cache_dir: see :func:`cache_folder`.
        num_proc: worker processes; starting them costs more than a data set of less than 1,000 rows takes.
        desc: beside the progress bar.
        **options: of ``datasets.Dataset.map``.
    """
    return cached(
        cache_folder(cache_dir),
        parts,
        lambda: dataset.map(
            build,
            num_proc=num_proc if num_proc and len(dataset) >= 1000 else None,
            desc=desc,
            new_fingerprint=sha256_json(parts)[:32],  # else datasets pickles build and all it refers to for one
            **options,
        ),
    )
