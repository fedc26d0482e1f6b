"""Options of ``dtm disperse``; ``ERRATA.md`` says where ``variant=paper`` and ``released`` differ."""

from __future__ import annotations

from dataclasses import dataclass

from reproalign.common.config.data import RowsConfig
from reproalign.common.config.launch import LaunchConfig
from reproalign.common.options import option, output_dir, section, seed, variant


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

    model: str = option(
        "sentence-transformers/all-mpnet-base-v2",
        help="of sentence-transformers: Hub id, folder, demo:all-minilm-l6-v2",
    )
    revision: str | None = option(None, help="of the Hub model", null="its default branch")
    text: str = option(
        "response",
        help="what is embedded",
        choices={"instruction": "", "response": "released", "both": "a newline between"},
    )
    batch_size: int = option(256, help="texts per forward", at_least=1)
    shard_size: int = option(
        4096, help="rows per file; an interrupted run embeds at most one of them again (per process)", at_least=1
    )
    dtype: str = option(
        "float32", help="of the stored embeddings", choices={"float32": "", "float16": "half the disk and memory map"}
    )


@dataclass
class KMeansConfig:
    """K-means on the normalised embeddings, for method=kmeans."""

    algorithm: str | None = option(
        None,
        help="how clusters are found",
        choices=("released", "lloyd", "minibatch", "faiss", "balanced"),
        null="released, or paper: lloyd",
    )
    backend: str = option(
        "numpy", help="of algorithm=released", choices={"numpy": "", "faiss": "the library; same result"}
    )
    iterations: int | None = option(
        None, help="at most", at_least=1, null="1500 (released, faiss), 300 (lloyd), 100 (minibatch, balanced)"
    )
    restarts: int = option(
        1, help="of lloyd, minibatch, faiss, balanced: the start with the least inertia is kept", at_least=1
    )
    points_per_cluster: int | None = option(
        None, help="of algorithm=released: rows per cluster that it sees", at_least=1, null="256, as faiss"
    )
    spherical: bool = option(
        False, help="of algorithm=released, faiss: centroids scaled to length 1 at every iteration"
    )
    seed: int | None = option(
        None,
        help="of the start; faiss takes no larger one",
        at_least=0,
        at_most=2**31 - 1,
        null="the run's; of algorithm=released: 1234, as in faiss",
    )


@dataclass
class DisperseConfig:
    """``dtm disperse``: instruction rows in clusters."""

    output_dir: str = output_dir()
    seed: int = seed(help="seed of the held-out prompts and the clusters")
    resume: str = option(
        "auto", help="an interrupted run", choices={"auto": "keep its embeddings", "never": "refuse its folder"}
    )
    variant: str = variant()
    method: str | None = option(
        None,
        help="how rows get their cluster",
        choices={
            "random": "draws",
            "random_equal": "draws, of equal size",
            "kmeans": "of the embeddings",
            "labels": "a file",
        },
        null="random_equal, released: random",
    )
    clusters: int = option(4, help="K", at_least=1)
    labels: str | None = option(
        None, help="of method=labels: JSON array of one integer in 0..K-1 for each row", null="none, for other methods"
    )
    data: InstructionsConfig = section(InstructionsConfig)
    embedding: EmbeddingConfig = section(EmbeddingConfig)
    embeddings: str | None = option(
        None,
        help="folder of an earlier run's embeddings of the same texts: nothing is embedded again",
        null="texts are embedded",
    )
    kmeans: KMeansConfig = section(KMeansConfig)
    nearest: int = option(5, help="rows shown for each cluster: the nearest to its centroid", at_least=1)
    launch: LaunchConfig = section(LaunchConfig, help="ddp: each process embeds its share of the shards")
