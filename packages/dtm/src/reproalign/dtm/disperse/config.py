"""Options of ``dtm disperse``; ``ERRATA.md`` says where ``variant=paper`` and ``released`` differ."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from reproalign.common.config import LaunchConfig, RowsConfig
from reproalign.common.options import option, section


@dataclass
class InstructionsConfig:
    """Which instruction rows, and what becomes of those that do not fit."""

    sets: dict[str, RowsConfig] = option({}, help="the data sets, each under a name; none: the TÜLU-v2 mixture")
    system: str = option(
        "drop",
        help="system text of a chat",
        choices={"drop": "left out", "keep": "before the instruction, a blank line between"},
    )
    on_error: str | None = option(
        None,
        help="what becomes of a row that does not fit",
        choices={"raise": "the run stops", "skip": "listed in rejects.jsonl"},
        null="raise if released, otherwise skip",
    )
    eval_fraction: float = option(0.0, help="hold out the rows of this share of the prompts", at_least=0, below=1)


@dataclass
class EmbeddingConfig:
    """Sentence embeddings, for method=kmeans."""

    model: str = (
        "sentence-transformers/all-mpnet-base-v2"  # of sentence-transformers: Hub id, folder, demo:all-minilm-l6-v2
    )
    revision: str | None = None  # of the Hub model
    text: str = "response"  # what is embedded: instruction | response (released) | both (a newline between)
    batch_size: int = 256  # texts per forward
    shard_size: int = 4096  # rows per file; an interrupted run embeds at most one of them again (per process)
    dtype: str = "float32"  # of the stored embeddings: float32 | float16 (half the disk and memory map)


@dataclass
class KMeansConfig:
    """K-means on the normalised embeddings, for method=kmeans."""

    algorithm: str | None = None  # released | lloyd | minibatch | faiss | balanced; null: released, or paper: lloyd
    backend: str = "numpy"  # of algorithm=released: numpy | faiss (the library; same result)
    iterations: int | None = None  # at most; null: 1500 (released, faiss), 300 (lloyd), 100 (minibatch, balanced)
    restarts: int = 1  # of lloyd, minibatch, faiss, balanced: the start with the least inertia is kept
    points_per_cluster: int | None = None  # of algorithm=released: rows per cluster that it sees; null: 256, as faiss
    spherical: bool = False  # of algorithm=released, faiss: centroids scaled to length 1 at every iteration
    seed: int | None = None  # null: the run's; of algorithm=released: 1234, as in faiss


@dataclass
class DisperseConfig:
    """``dtm disperse``: instruction rows in clusters."""

    output_dir: str = MISSING
    seed: int = 42  # of the held-out prompts and the clusters
    resume: str = "auto"  # auto: keep the embeddings of an interrupted run | never: refuse its folder
    variant: str = "paper"  # paper | released
    method: str | None = None  # random (draws) | random_equal | kmeans | labels; null: random_equal, released: random
    clusters: int = 4  # K, at least 1
    labels: str | None = None  # of method=labels: JSON array of one integer in 0..K-1 for each row
    data: InstructionsConfig = section(InstructionsConfig)
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    embeddings: str | None = None  # folder of an earlier run's embeddings of the same texts: nothing is embedded again
    kmeans: KMeansConfig = field(default_factory=KMeansConfig)
    nearest: int = 5  # rows shown for each cluster: the nearest to its centroid
    launch: LaunchConfig = field(default_factory=LaunchConfig)  # ddp: each process embeds its share of the shards
