"""Pictures of a dispersal: sizes by source, and the rows in two dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from matplotlib import colormaps
from numpy.typing import NDArray

from reproalign.common.evaluation.plots.canvas import one_panel, save
from reproalign.dtm.disperse.embeddings import Embeddings
from reproalign.dtm.disperse.summary import Cluster

SAMPLE = 4000  # dots
SOURCES = 9  # with a colour of their own; the rest share one
GREY = "#e2e2e2"


def draw_sources(clusters: Sequence[Cluster], path: Path) -> None:
    """Draw the sizes of the clusters as bars, divided by source."""
    totals: dict[str, int] = {}
    for cluster in clusters:
        for name, count in cluster.sources.items():
            totals[name] = totals.get(name, 0) + count
    named = sorted(totals, key=lambda name: -totals[name])[:SOURCES]
    figure, axis = one_panel(max(4.8, 0.5 * len(clusters) + 3.6), 3.8)
    places, bottom = np.arange(len(clusters)), np.zeros(len(clusters))
    for colour, name in enumerate(named):
        counts = np.array([cluster.sources.get(name, 0) for cluster in clusters])
        axis.bar(places, counts, bottom=bottom, color=_colour(colour, len(named)), label=name)
        bottom += counts
    rest = np.array([cluster.rows for cluster in clusters]) - bottom
    if rest.any():
        axis.bar(places, rest, bottom=bottom, color=GREY, label=f"{len(totals) - len(named)} more")
    axis.set(xlabel="cluster", ylabel="rows", title="rows of each cluster by source")
    axis.set_xticks(places)
    figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    save(figure, path)


def draw_clusters(
    embeddings: Embeddings,
    labels: Int[NDArray[np.int64], " rows"],
    centroids: Float[NDArray[np.float32], "clusters dim"],
    path: Path,
    *,
    seed: int,
) -> None:
    """Draw a sample of the rows on the two directions in which they differ most (PCA of the sample), by cluster."""
    from sklearn.decomposition import PCA

    count = min(SAMPLE, len(embeddings))
    rows = np.sort(np.random.default_rng(seed).choice(len(embeddings), count, replace=False))
    vectors = embeddings.take(rows)
    pca = PCA(min(2, *vectors.shape), svd_solver="full").fit(vectors)
    dots, middles = (_two_columns(pca.transform(values)) for values in (vectors, centroids))
    shares = [*pca.explained_variance_ratio_.tolist(), 0.0][:2]
    figure, axis = one_panel(6.4, 5.0)
    order = np.random.default_rng(seed).permutation(count)  # so that no cluster hides the others
    colours = np.array([_colour(cluster, len(centroids)) for cluster in range(len(centroids))])
    axis.scatter(dots[order, 0], dots[order, 1], c=colours[labels[rows][order]], s=7, alpha=0.6, linewidths=0)
    sizes = np.bincount(labels, minlength=len(centroids))
    for cluster, (x, y) in enumerate(middles):
        label = f"{cluster} ({sizes[cluster]})"
        axis.plot(x, y, "o", color=colours[cluster], markeredgecolor="black", markersize=8, label=label)
    names = [f"PC {number} ({share:.1%} of the variance)" for number, share in enumerate(shares, start=1)]
    sampled = f"{count} of {len(embeddings)} rows" if count < len(embeddings) else f"{count} rows"
    axis.set(xlabel=names[0], ylabel=names[1], title=f"embeddings of {sampled}; rings: centroids")
    figure.legend(
        loc="outside right upper", frameon=False, fontsize="small", title="cluster (rows)", ncols=1 + sizes.size // 25
    )
    save(figure, path)


def _two_columns(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values if values.shape[1] == 2 else np.column_stack([values[:, 0], np.zeros(len(values), np.float32)])


def _colour(index: int, count: int) -> tuple[float, float, float]:
    palette = colormaps["tab10" if count <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    red, green, blue = palette[index % len(palette)]
    return red, green, blue
