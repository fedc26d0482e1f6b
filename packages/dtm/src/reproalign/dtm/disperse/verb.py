"""The verb ``disperse``: instruction rows in, rows and their cluster labels out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from reproalign.common.errors import UserError, choose
from reproalign.common.files import sha256_file, sha256_json, write_json
from reproalign.common.invocation import Invocation
from reproalign.common.records import Run
from reproalign.dtm.disperse.config import DisperseConfig
from reproalign.dtm.disperse.extract import ROWS, Extracted, extract
from reproalign.dtm.disperse.labels import LABELS, check_used, read_given_labels, write_labels
from reproalign.dtm.disperse.random_split import equal_labels, random_labels
from reproalign.dtm.disperse.sets import parse_sets
from reproalign.dtm.disperse.settings import Settings, resolve
from reproalign.dtm.disperse.sources import Rules

DISPERSAL = "dispersal.json"


def disperse(config: DisperseConfig, invocation: Invocation) -> None:
    """Write ``rows.jsonl``, ``labels.json`` and ``dispersal.json`` into a run.

    Raises:
        UserError: for settings, data or labels that cannot be used; nothing is left behind then.
    """
    settings = resolve(config)
    with Run.open(invocation) as run:
        extracted = extract_rows(settings, run.dir)
        labels = _assign(settings, extracted.rows)
        check_used(labels, config.clusters, f"method={settings.method}")
        write_labels(run.dir / LABELS, labels)
        write_json(run.dir / DISPERSAL, _facts(settings, extracted, labels, run.dir))
        _record(run, extracted, labels)
        Console().print(f"{extracted.rows} rows in {config.clusters} clusters: {run.dir}", highlight=False)


def extract_rows(settings: Settings, folder: Path) -> Extracted:
    """Write the rows into ``folder`` as the settings say (:func:`~reproalign.dtm.disperse.extract.extract`)."""
    data = settings.config.data
    extracted = extract(
        settings.sets,
        folder,
        rules=Rules(released=settings.released, system=data.system),
        on_error=settings.on_error,
        eval_fraction=data.eval_fraction,
        seed=settings.config.seed,
    )
    if extracted.rows < settings.config.clusters:
        raise UserError(
            f"clusters={settings.config.clusters}, but there are only {extracted.rows} training rows; lower clusters"
        )
    return extracted


def _assign(settings: Settings, rows: int) -> NDArray[np.int64]:
    config = settings.config
    if settings.method == "labels":
        return read_given_labels(Path(str(config.labels)).expanduser(), rows, config.clusters)
    draw = {"random": random_labels, "random_equal": equal_labels}[settings.method]
    return draw(rows, config.clusters, config.seed)


def _facts(settings: Settings, extracted: Extracted, labels: NDArray[np.int64], folder: Path) -> dict[str, Any]:
    return {
        "variant": settings.config.variant,
        "method": settings.method,
        "clusters": settings.config.clusters,
        "sizes": np.bincount(labels, minlength=settings.config.clusters).tolist(),
        "rows": extracted.rows,
        "held_out": extracted.held_out,
        "rejected": extracted.rejected,
        "seed": settings.config.seed,
        "sha256": {name: sha256_file(folder / name) for name in (ROWS, LABELS)},
    }


def _record(run: Run, extracted: Extracted, labels: NDArray[np.int64]) -> None:
    for label, facts in extracted.sets.items():
        run.add_fingerprint("data", label, facts.get("sha256") or sha256_json(facts), **facts)
