"""What a dispersal made: sizes, sources, lengths, and the rows nearest to each centroid."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from reproalign.dtm.disperse.embeddings import Embeddings

FIRST_WORDS = 12


@dataclass
class Cluster:
    """One cluster's rows.

    Attributes:
        rows: how many.
        sources: source -> rows, most frequent first.
        instruction_words: mean length of instruction and input, in words between blanks.
        output_words: mean length of the response.
        nearest: the rows nearest to the centroid: index, distance, first words of instruction and response.
    """

    rows: int
    sources: dict[str, int]
    instruction_words: float = 0.0
    output_words: float = 0.0
    nearest: list[dict[str, Any]] = field(default_factory=list)


def summarise(
    path: Path,
    labels: Int[NDArray[np.int64], " rows"],
    source_of: NDArray[np.uint32],
    sources: Sequence[str],
    clusters: int,
    nearest: Sequence[Sequence[tuple[int, float]]] = (),
) -> list[Cluster]:
    """Describe every cluster, in one pass over the rows.

    Args:
        path: of ``rows.jsonl``.
        labels: of the rows.
        source_of: index in ``sources`` of each row's source.
        sources: names.
        clusters: K.
        nearest: of each cluster, rows and distances to be shown (see :func:`nearest_rows`).
    """
    counts = [Counter(source_of[labels == cluster].tolist()) for cluster in range(clusters)]
    made = [
        Cluster(sum(count.values()), {sources[code]: number for code, number in count.most_common()})
        for count in counts
    ]
    shown = {row: (cluster, distance) for cluster, found in enumerate(nearest) for row, distance in found}
    words = np.zeros((clusters, 2))
    with path.open(encoding="utf-8", newline="\n") as stream:
        for number, line in enumerate(stream):
            row = json.loads(line)
            question = " ".join(str(row.get(name) or "") for name in ("instruction", "input"))
            answer = str(row.get("output") or "")
            words[labels[number]] += (len(question.split()), len(answer.split()))
            if number in shown:
                cluster, distance = shown[number]
                facts = {"instruction": first_words(question), "output": first_words(answer)}
                made[cluster].nearest.append({"row": number, "distance": distance, **facts})
    for described, (asked, answered) in zip(made, words, strict=True):
        described.instruction_words = float(asked / max(described.rows, 1))
        described.output_words = float(answered / max(described.rows, 1))
        described.nearest.sort(key=lambda entry: (entry["distance"], entry["row"]))
    return made


def nearest_rows(
    embeddings: Embeddings,
    centroids: Float[NDArray[np.float32], "clusters dim"],
    labels: Int[NDArray[np.int64], " rows"],
    count: int,
) -> list[list[tuple[int, float]]]:
    """Return of each cluster the ``count`` rows of the least Euclidean distance to its centroid, nearest first.

    Of rows at the same distance, to six decimals, the first one stands for all: most often they say the same.
    """
    found: list[list[tuple[float, int]]] = [[] for _ in centroids]
    for start, chunk in embeddings.chunks():
        own = labels[start : start + len(chunk)]
        distances = np.linalg.norm(chunk - centroids[own], axis=1)
        for cluster in np.unique(own).tolist():
            rows = np.flatnonzero(own == cluster)
            different, first = np.unique(distances[rows].round(6), return_index=True)
            here = zip(different[:count].tolist(), (start + rows[first[:count]]).tolist(), strict=True)
            firsts = {distance: row for distance, row in sorted([*found[cluster], *here], reverse=True)}
            found[cluster] = sorted(firsts.items())[:count]
    return [[(row, distance) for distance, row in rows] for rows in found]


def first_words(text: str) -> str:
    """Return the beginning of a text on one line."""
    words = text.split()
    return " ".join(words[:FIRST_WORDS])[:120] + (" …" if len(words) > FIRST_WORDS else "")
