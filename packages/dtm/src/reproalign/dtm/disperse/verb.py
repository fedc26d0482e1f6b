"""The verb ``disperse``: instruction rows in, rows and their cluster labels out."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray
from rich.table import Table

from reproalign.common.console import result_console
from reproalign.common.errors import ReportedError, UserError
from reproalign.common.files import sha256_file, sha256_json, write_json
from reproalign.common.invocation import Invocation
from reproalign.common.launch.plan import check_in_force
from reproalign.common.records import Run
from reproalign.common.records.folder import check_folder
from reproalign.dtm.disperse.clustering import RowClustering, cluster_embeddings, streamed_means
from reproalign.dtm.disperse.config import DisperseConfig
from reproalign.dtm.disperse.embedder import check_embedder
from reproalign.dtm.disperse.embeddings import Embeddings
from reproalign.dtm.disperse.extract import REJECTS, Extracted, extract
from reproalign.dtm.disperse.first_turn import FirstTurnRules
from reproalign.dtm.disperse.labels import check_used, given_labels, write_labels
from reproalign.dtm.disperse.plots import draw_clusters, draw_sources
from reproalign.dtm.disperse.random_split import equal_labels, random_labels
from reproalign.dtm.disperse.released_files import write_released_labels
from reproalign.dtm.disperse.report import write_report
from reproalign.dtm.disperse.settings import DisperseSettings, resolve
from reproalign.dtm.disperse.stored import embeddings_of, manifest_of
from reproalign.dtm.disperse.summary import nearest_rows, summarise
from reproalign.dtm.rows import DISPERSAL, LABELS, ROWS


def disperse(config: DisperseConfig, invocation: Invocation) -> None:
    """Write ``rows.jsonl``, ``labels.json``, ``dispersal.json`` and a report into a run.

    With ``launch=ddp`` the processes share the embedding; the first one does everything else.

    Raises:
        UserError: for settings, data, labels or models that cannot be used; nothing is left behind then.
    """
    settings = resolve(config)
    if settings.embeds and not config.embeddings:
        check_embedder(config.embedding)
    state = PartialState(cpu=not torch.accelerator.is_available())
    check_in_force(config.launch.strategy, state.distributed_type.value)
    with Run.open(invocation, is_main=state.is_main_process) as run:
        extracted = extract_rows(settings, run.dir) if state.is_main_process else None
        if extracted:
            _record_data(run, settings, extracted)
        state.wait_for_everyone()  # the rows are there
        embeddings = embeddings_of(settings, run, state) if settings.embeds else None
        if extracted:
            _finish(settings, run, extracted, embeddings)


def dry_run(config: DisperseConfig, invocation: Invocation) -> None:
    """Check everything that :func:`disperse` checks before it embeds, read the rows, and print what would be made."""
    settings = resolve(config)
    if settings.embeds and not config.embeddings:
        check_embedder(config.embedding)
    check_folder(Path(config.output_dir), invocation)
    with tempfile.TemporaryDirectory(prefix="reproalign-") as folder:
        extracted = extract_rows(settings, Path(folder))
    table = Table("set", "source", "rows read", "from", header_style="bold")
    for label, facts in extracted.sets.items():
        table.add_row(label, facts["source"], str(facts["rows_read"]), str(facts.get("path") or facts.get("name")))
    console = result_console()
    console.print(table)
    console.print(
        f"{extracted.rows} rows in {config.clusters} clusters (method={settings.method}), {extracted.held_out} held "
        f"out, {extracted.rejected} that do not fit; would write to {config.output_dir}"
    )
    if settings.embeds and not config.embeddings:
        console.print(f"would embed the {config.embedding.text} of each with {config.embedding.model}")


def extract_rows(settings: DisperseSettings, folder: Path) -> Extracted:
    """Write the rows into ``folder`` as the settings say (:func:`~reproalign.dtm.disperse.extract.extract`).

    Raises:
        UserError: if they are fewer than the clusters.
    """
    data = settings.config.data
    extracted = extract(
        settings.sets,
        folder,
        rules=FirstTurnRules(unchecked=settings.rules.unchecked, system=data.system),
        on_error=settings.on_error,
        eval_fraction=data.eval_fraction,
        seed=settings.config.seed,
    )
    if extracted.rows < settings.config.clusters:
        raise UserError(
            f"clusters={settings.config.clusters}, but there are only {extracted.rows} training rows; set a lower "
            "number of clusters"
        )
    return extracted


def assign(
    settings: DisperseSettings, rows: int, embeddings: Embeddings | None
) -> tuple[NDArray[np.int64], RowClustering | None]:
    """Return the labels of the rows, and the clustering if they come from one.

    Raises:
        UserError: for labels that do not fit, and for a cluster that no row is in.
    """
    config = settings.config
    found = None
    if settings.method == "kmeans":
        assert embeddings is not None
        found = cluster_embeddings(embeddings, config.clusters, config.kmeans, seed=config.seed)
        labels = found.labels
    elif settings.method == "labels":
        labels = given_labels(str(config.labels), rows, config.clusters)
    else:
        draw = {"random": random_labels, "random_equal": equal_labels}[settings.method]
        labels = draw(rows, config.clusters, config.seed)
    check_used(labels, config.clusters, config.labels or f"method={settings.method}")
    return labels, found


def _finish(settings: DisperseSettings, run: Run, extracted: Extracted, embeddings: Embeddings | None) -> None:
    config = settings.config
    try:
        labels, found = assign(settings, extracted.rows, embeddings)
    except UserError as error:
        if embeddings and not config.embeddings:  # what took long is not thrown away with the run
            raise ReportedError(f"{error}; the embeddings are kept, for runs with embeddings={run.dir}") from error
        raise
    write_labels(run.dir / LABELS, labels)
    if settings.rules.label_files and settings.method == "kmeans":
        write_released_labels(run.dir, config.embedding.model, labels, extracted.set_sizes, config.clusters)
    facts = _facts(settings, extracted, labels, run.dir)
    nearest: list[list[tuple[int, float]]] = []
    if embeddings:
        facts["embedding"] = {**manifest_of(settings, run.dir), "dim": embeddings.dim}
        centroids = found.centroids if found else streamed_means(embeddings, labels, config.clusters)
        nearest = nearest_rows(embeddings, centroids, labels, config.nearest)
        draw_clusters(embeddings, labels, centroids, run.dir / "plots" / "clusters.png", seed=config.seed)
    if found:
        facts["kmeans"] = found.facts
    clusters = summarise(run.dir / ROWS, labels, extracted.source_of, extracted.sources, config.clusters, nearest)
    draw_sources(clusters, run.dir / "plots" / "sources.png")
    write_report(run.dir, facts, clusters)
    write_json(run.dir / DISPERSAL, facts)
    run.add_fingerprint("data", LABELS, facts["sha256"][LABELS], made=True, rows=len(labels))
    run.set_metrics({"rows": extracted.rows, "held_out": extracted.held_out, "rejected": extracted.rejected,
                     "sizes": facts["sizes"], **({"kmeans": found.facts} if found else {})})  # fmt: skip
    console = result_console()
    if extracted.rejected:
        console.print(f"{extracted.rejected} rows did not fit: {run.dir / REJECTS}", style="yellow")
    console.print(f"rows, labels and report: {run.dir}")


def _facts(settings: DisperseSettings, extracted: Extracted, labels: NDArray[np.int64], folder: Path) -> dict[str, Any]:
    return {
        "variant": settings.config.variant,
        "method": settings.method,
        "clusters": settings.config.clusters,
        "sizes": np.bincount(labels, minlength=settings.config.clusters).tolist(),
        "rows": extracted.rows,
        "held_out": extracted.held_out,
        "rejected": extracted.rejected,
        "placeholders": extracted.placeholders,
        "seed": settings.config.seed,
        "sets": extracted.sets,
        "sha256": {name: sha256_file(folder / name) for name in (ROWS, LABELS)},
    }


def _record_data(run: Run, settings: DisperseSettings, extracted: Extracted) -> None:
    for label, facts in extracted.sets.items():
        run.add_fingerprint("data", label, facts.get("sha256") or sha256_json(facts), **facts)
    if settings.config.labels:
        path = Path(settings.config.labels).expanduser()
        run.add_fingerprint("data", "labels", sha256_file(path), path=settings.config.labels)
    run.add_fingerprint("data", ROWS, sha256_file(run.dir / ROWS), made=True, rows=extracted.rows)
