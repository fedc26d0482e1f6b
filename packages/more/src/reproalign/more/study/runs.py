"""Runs as the study reads them: which base model and scheme a run is of, and what it measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from reproalign.common.errors import UserError
from reproalign.common.records.folder import read_record
from reproalign.common.records.handed_on import intact
from reproalign.more.report import DIFFERENCES
from reproalign.more.study.results import SINGLE

Floats = NDArray[np.float64]
RAW, AVERAGING, MORE, MULTITASK = "raw", "averaging", "more", "multitask"
ALIGNED = "rjs_"  # scheme of a language model aligned by a reward model of the scheme that follows
SFT = "sft"  # scheme of a language model fine-tuned on given responses
BASE_MODEL = "base"  # scheme of a language model that no run has trained


@dataclass(frozen=True)
class Origin:
    """Base model, scheme, and the domains a reward model was trained on, if that is known."""

    base: str
    scheme: str
    domains: tuple[str, ...] = ()


@dataclass(frozen=True)
class StudiedRun:
    """A run's folder, record, and what it is of."""

    folder: Path
    record: Mapping[str, Any]
    origin: Origin

    @property
    def domains(self) -> dict[str, dict[str, float]]:
        """Metrics of held-out domains; none for runs of other verbs."""
        return dict(self.record.get("metrics", {}).get("domains", {}))

    @cached_property
    def margins(self) -> dict[str, Floats]:
        """Reward of the better response minus that of the worse, of every pair of a domain.

        Raises:
            UserError: if the run's file is not there.
        """
        path = self.folder / DIFFERENCES
        if not path.is_file():
            raise UserError(f"{path}: no such file; give a run of `more-rm train`, `evaluate` or `average`")
        return {name: values.astype(np.float64) for name, values in load_file(intact(path)).items()}


def read_runs(entries: Sequence[str], bases: Mapping[str, str]) -> list[StudiedRun]:
    """Read runs; each entry is a folder, or ``BASE/SCHEME@FOLDER`` where the record does not tell.

    Args:
        entries: as given.
        bases: Hub id -> name of the base model.

    Raises:
        UserError: for a folder without a record, one given twice, or a run that tells neither base nor scheme.
    """
    found = []
    for entry in entries:
        label, _, folder = entry.rpartition("@")
        path = Path(folder).expanduser()
        record = read_record(path)
        origin = _labelled(label, entry) if label else run_origin(record, path, bases)
        found.append(StudiedRun(path if path.is_dir() else path.parent, record, origin))
    seen = [run.folder.resolve() for run in found]
    if len(set(seen)) < len(seen):
        raise UserError("runs: one run is given twice; name each once")
    return found


def run_origin(record: Mapping[str, Any], folder: Path, bases: Mapping[str, str]) -> Origin:
    """Tell base model and scheme from a record and those of the runs that its inputs came from.

    Raises:
        UserError: if they do not tell.
    """
    verb, config = record.get("verb"), record["config"]
    if verb == "train":
        if record.get("package", "reproalign.more") != "reproalign.more":
            raise UserError(f"{folder}: a training of `{str(record['command']).split()[0]}`; give runs of more-rm")
        data = config["data"]
        trained = tuple(data.get("train_domains") or data.get("domains") or data.get("sets") or ())
        return Origin(base_name(config["model"]["name"], bases), _scheme(config, trained), trained)
    if verb == "evaluate" and config.get("fresh_head"):
        return Origin(base_name(config["model"]["name"], bases), RAW)
    if verb == "average":
        before = [run_origin(read_record(Path(path)), Path(path), bases) for path in config["runs"]]
        return Origin(before[0].base, AVERAGING, tuple(domain for origin in before for domain in origin.domains))
    if verb == "align" and _input(record, "selected") is None:
        return Origin(base_name(config["model"]["name"], bases), SFT)
    if verb == "align":
        reward = _follow(record, ("selected", "scored", "model.name"), folder, bases)
        return Origin(reward.base, f"{ALIGNED}{reward.scheme}", reward.domains)
    if verb in ("evaluate", "sample", "perplexity"):
        before_folder = _input(record, "model.name")
        if before_folder is not None:
            return run_origin(read_record(before_folder), before_folder, bases)
        return Origin(base_name(config["model"]["name"], bases), BASE_MODEL)
    raise UserError(f"{folder}: a run of `{verb}` tells neither base model nor scheme; give it as BASE/SCHEME@{folder}")


def _scheme(config: Mapping[str, Any], trained: Sequence[str]) -> str:
    """Name the training: ``more``, ``multitask`` (``more-3`` on three domains of more), ``single-helpful``, a rule."""
    if len(trained) == 1:
        return f"{SINGLE}{trained[0]}"
    rule = config["weights"]["rule"]
    name = MULTITASK if config["method"] == MULTITASK else MORE if rule == "min-norm" else str(rule)
    return name if len(trained) == len(config["data"]["domains"]) else f"{name}-{len(trained)}"


def base_name(model: str, bases: Mapping[str, str]) -> str:
    """Return the paper's name of a base model, or the last part of its id in small letters."""
    return bases.get(model) or model.rstrip("/").rpartition("/")[2].rpartition(":")[2].lower()


def _follow(record: Mapping[str, Any], keys: Sequence[str], folder: Path, bases: Mapping[str, str]) -> Origin:
    """Go from run to run by what each of them read, and tell the last one's origin."""
    for key in keys:
        before = _input(record, key)
        if before is None:
            raise UserError(f"{folder}: no record tells by which reward model; give it as BASE/SCHEME@{folder}")
        record, last = read_record(before), before
    return run_origin(record, last, bases)


def _input(record: Mapping[str, Any], key: str) -> Path | None:
    entry = record.get("inputs", {}).get(key)
    return Path(entry["run"]) if entry else None


def _labelled(label: str, entry: str) -> Origin:
    base, separator, scheme = label.partition("/")
    if not (base and separator and scheme):
        raise UserError(f"runs: '{entry}' must be a folder, or BASE/SCHEME@FOLDER, such as pythia-1.4b/more@runs/mine")
    return Origin(base, scheme)


def read_comparison(run: StudiedRun) -> dict[str, Any] | None:
    """Return what a run of ``evaluate responses=[…]`` measured; None for other runs."""
    path = run.folder / "comparison.json"
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(intact(path).read_text(encoding="utf-8"))
    return found
