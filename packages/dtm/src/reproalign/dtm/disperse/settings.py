"""The options of a dispersal, checked, with what ``null`` stands for."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from reproalign.common.config.data import RowsConfig
from reproalign.common.data.reading import local_path
from reproalign.common.data.splits import source_of
from reproalign.common.errors import UserError
from reproalign.dtm.disperse.config import DisperseConfig, EmbeddingConfig, KMeansConfig
from reproalign.dtm.rules import DtmRules, rules_of

METHODS = ("random", "random_equal", "kmeans", "labels")
CORPUS = {"tulu": RowsConfig(source="tulu")}  # the paper's corpus, from its home on the Hub
ALGORITHMS = ("released", "lloyd", "minibatch", "faiss", "balanced")


@dataclass(frozen=True)
class DisperseSettings:
    """What a dispersal does.

    Attributes:
        config: the options; ``kmeans.algorithm`` is set.
        sets: what is read.
        method: one of METHODS.
        on_error: ``skip`` or ``raise``.
        rules: of the variant.
    """

    config: DisperseConfig
    sets: dict[str, RowsConfig]
    method: str
    on_error: str
    rules: DtmRules

    @property
    def embeds(self) -> bool:
        """Whether embeddings are needed: for the clusters, or given for the report."""
        return self.method == "kmeans" or self.config.embeddings is not None


def resolve(config: DisperseConfig) -> DisperseSettings:
    """Check every option that can be checked without data or model.

    Raises:
        UserError: naming the key, its value and what is allowed.
    """
    rules = rules_of(config.variant)
    method = config.method or rules.method
    if config.launch.strategy not in ("single", "auto", "ddp"):
        raise UserError(f"launch.strategy={config.launch.strategy} is for training; disperse with launch=single or ddp")
    if rules.unchecked and config.data.system == "keep":
        raise UserError("data.system=keep: the release drops system texts; set variant=paper to keep them")
    _check_labels(config, method)
    on_error = config.data.on_error or rules.on_error
    kmeans = _check_kmeans(config.kmeans, method, rules.algorithm)
    made = DisperseSettings(replace(config, kmeans=kmeans), check_sets(config.data.sets), method, on_error, rules)
    _check_embedding(made)
    return made


def check_sets(sets: Mapping[str, RowsConfig]) -> dict[str, RowsConfig]:
    """Return the data sets that are read, the paper's if none are given; files have to be there.

    Raises:
        UserError: for an unknown source, a missing file, or a data set that nothing says where to find.
    """
    found = dict(sets or CORPUS)
    for label, entry in found.items():
        source = source_of(label, entry)
        if entry.path:
            local_path(entry.path, entry.split or "train", key=f"data.sets.{label}.path")
        elif not entry.name and not (source and source.hub):
            raise UserError(f"data.sets.{label} has neither path nor name, and its source no home on the Hub; set one")
        if source and source.evaluation_only:
            raise UserError(f"data.sets.{label}: {source.name} is for evaluation only; train on another data set")
    return found


def _check_labels(config: DisperseConfig, method: str) -> None:
    if (method == "labels") != (config.labels is not None):
        raise UserError("method=labels and labels=FILE go together; give both or neither")
    if config.labels is not None and not Path(config.labels).expanduser().is_file():
        raise UserError(f"labels={config.labels}: no such file; check the path")


def _check_kmeans(options: KMeansConfig, method: str, default: str) -> KMeansConfig:
    if method != "kmeans":
        if options != KMeansConfig():
            raise UserError(f"kmeans.*: method={method} clusters nothing; set method=kmeans, or leave these keys out")
        return options
    algorithm = options.algorithm or default
    read_by = {
        "backend": (options.backend != "numpy", ("released",)),
        "points_per_cluster": (options.points_per_cluster is not None, ("released",)),
        "spherical": (options.spherical, ("released", "faiss")),
        "restarts": (options.restarts > 1, ("lloyd", "minibatch", "faiss", "balanced")),
    }
    for name, (given, readers) in read_by.items():
        if given and algorithm not in readers:
            raise UserError(
                f"kmeans.{name} has no meaning for kmeans.algorithm={algorithm}; it is read by {', '.join(readers)}"
            )
    if "faiss" in (algorithm, options.backend) and importlib.util.find_spec("faiss") is None:
        raise UserError("kmeans: faiss is not installed; install reproalign-dtm[faiss], or choose another algorithm")
    return replace(options, algorithm=algorithm)


def _check_embedding(settings: DisperseSettings) -> None:
    options = settings.config.embedding
    if not settings.embeds:
        if options != EmbeddingConfig():
            raise UserError(
                f"embedding.*: method={settings.method} embeds nothing; set method=kmeans, or leave these keys out"
            )
        return
