"""The embeddings of a run: made here, or taken from an earlier one that embedded the same texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import PartialState

from reproalign.common.files import sha256_json, write_json
from reproalign.common.manifests import digest_of
from reproalign.common.records import Run
from reproalign.dtm.disperse.embed import embed_shards, hash_texts, read_texts
from reproalign.dtm.disperse.embedder import Embedder, identify_embedder
from reproalign.dtm.disperse.embeddings import (
    FOLDER,
    MANIFEST,
    Embeddings,
    check_manifest,
    open_embeddings,
    read_manifest,
)
from reproalign.dtm.disperse.settings import DisperseSettings
from reproalign.dtm.rows import ROWS


def embeddings_of(settings: DisperseSettings, run: Run, state: PartialState) -> Embeddings | None:
    """Return the embeddings of the run's rows, on the first process; None on the others.

    Raises:
        UserError: for embeddings of other texts or weights, and for a model that cannot be loaded.
    """
    folder = folder_of(settings, run.dir)
    key = "embeddings" if settings.config.embeddings else "output_dir"
    expected = _expected(settings, run.dir) if state.is_main_process else {}
    if not settings.config.embeddings:
        _embed(settings, run, state, folder, expected)
    if not state.is_main_process:
        return None
    found = open_embeddings(folder, expected, key)
    shards = [digest_of(path) for path in sorted(folder.glob("shard-*.npy"))]
    made = not settings.config.embeddings
    run.add_fingerprint("data", "embeddings", sha256_json(shards), made=made, rows=len(found), dim=found.dim)
    run.add_fingerprint("weights", "embedder", expected["model_id"], name=settings.config.embedding.model)
    return found


def folder_of(settings: DisperseSettings, run_dir: Path) -> Path:
    """Return where the embeddings are: those of this run, or the given ones, by their folder or their run's."""
    if settings.config.embeddings is None:
        return run_dir / FOLDER
    given = Path(settings.config.embeddings).expanduser()
    return given / FOLDER if (given / FOLDER / MANIFEST).is_file() else given


def manifest_of(settings: DisperseSettings, run_dir: Path) -> dict[str, Any]:
    """Return what the embeddings are of."""
    return read_manifest(folder_of(settings, run_dir), "embeddings")


def _expected(settings: DisperseSettings, run_dir: Path) -> dict[str, Any]:
    options = settings.config.embedding
    return {
        "text": options.text,
        "texts_sha256": hash_texts(run_dir / ROWS, options.text),
        "model_id": identify_embedder(options),
    }


def _embed(settings: DisperseSettings, run: Run, state: PartialState, folder: Path, expected: dict[str, Any]) -> None:
    options = settings.config.embedding
    embedder = Embedder(options, str(state.device))
    if state.is_main_process:
        if (folder / MANIFEST).is_file():
            check_manifest(folder, read_manifest(folder, "output_dir"), expected, "output_dir")
        else:
            facts = {"model": options.model, "max_seq_length": embedder.max_seq_length}
            sizes = {"shard_size": options.shard_size, "batch_size": options.batch_size, "dtype": options.dtype}
            write_json(folder / MANIFEST, {"rows": count_rows(run.dir / ROWS), **expected, **facts, **sizes})
    state.wait_for_everyone()
    embed_shards(
        read_texts(run.dir / ROWS, options.text),
        folder,
        embedder.load,
        rows=read_manifest(folder, "output_dir")["rows"],
        shard_size=options.shard_size,
        batch_size=options.batch_size,
        dtype=options.dtype,
        rank=state.process_index,
        processes=state.num_processes,
    )
    state.wait_for_everyone()


def count_rows(path: Path) -> int:
    """Return the number of lines of ``rows.jsonl``."""
    with path.open("rb") as stream:
        return sum(1 for _ in stream)
