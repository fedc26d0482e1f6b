"""What is kept on disk under the fingerprint of everything it was made from, and made again once it is damaged."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
from reproalign.common.errors import UserError
from reproalign.common.files import sha256_file, sha256_json
from reproalign.common.integrity import SMALL, damage
from reproalign.common.leftovers import make_beside, sweep_dead
from reproalign.common.manifests import seal

FORMAT = 2  # raised when prepared data made by older code must not be read


def cache_folder(cache_dir: str | None) -> Path:
    """Return the folder of the cache: ``cache_dir``, ``$REPROALIGN_CACHE``, or the user's cache folder."""
    chosen = cache_dir or os.environ.get("REPROALIGN_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path("reproalign")


def make_whole(folder: Path, make: Callable[[Path], Any], *, largest: int | None = None) -> Path:
    """Return a folder of the cache, made and sealed the first time, and again, with a line that says so, once damaged.

    Any number of processes may do so at once: each makes its own beside it, and the first one is kept. Who has files of
    a damaged folder open keeps them.

    Args:
        folder: in the cache.
        make: writes all that belongs there into an empty folder.
        largest: see :func:`~reproalign.common.integrity.damage`.

    Raises:
        UserError: for a damaged folder in a place that cannot be written.
    """
    problem = damage(folder, largest=largest) if folder.exists() else None
    if folder.exists() and problem is None:
        return folder
    try:
        temporary = make_beside(folder)
    except OSError as error:
        if problem is None:
            raise
        raise UserError(
            f"{problem}, and it cannot be made again there ({(error.strerror or 'not possible').lower()}); delete "
            f"{folder}, or set REPROALIGN_CACHE to a folder that can be written"
        ) from error
    if problem:
        print(f"reproalign: {problem}; {folder} is made again", file=sys.stderr)
    try:
        made = temporary / "made"
        made.mkdir()
        make(made)
        seal(made)
        with _alone(folder.parent):
            if not folder.exists() or damage(folder, largest=largest):  # else another process was faster
                if folder.exists():
                    folder.rename(temporary / "damaged")
                made.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time put things into a folder, where the file system has locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def fingerprint_dataset(dataset: Dataset) -> str:
    """Return the SHA-256 of a data set's rows, in order, column names included."""
    total = hashlib.sha256(json.dumps(dataset.column_names).encode())
    for row in dataset:
        total.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode())
    return total.hexdigest()


def fingerprint_rows(path: Path) -> str:
    """Return the SHA-256 of a file of rows, or of the rows of a ``save_to_disk`` folder."""
    return fingerprint_dataset(Dataset.load_from_disk(str(path))) if path.is_dir() else sha256_file(path)


def fingerprint_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 of what a tokenizer does: its model, special tokens and chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return sha256_json([model, special, tokenizer.chat_template])


def cached(folder: Path, parts: list[Any], build: Callable[[], Dataset]) -> Dataset:
    """Return the data set that ``build`` makes, from ``folder`` if it was made from equal ``parts`` before.

    With several processes the first one builds and the others read. What was damaged since is built again
    (:func:`make_whole`), and never mapped into memory, where it could end the process.
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
            load_from_cache_file=False,  # what datasets itself has kept is not sealed
            new_fingerprint=sha256_json(parts)[:32],  # skips datasets' own, for which it pickles the closure
            **options,
        ),
    )
