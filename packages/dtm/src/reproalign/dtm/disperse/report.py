"""The report of a dispersal: a table in the terminal, ``report.json``, ``report.md`` and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from reproalign.common.console import result_console
from reproalign.common.files import write_json, write_text
from reproalign.dtm.disperse.summary import Cluster

REPORT, TEXT = "report.json", "report.md"
SHOWN = 4  # sources of a cluster in the table


def write_report(folder: Path, facts: dict[str, Any], clusters: Sequence[Cluster]) -> None:
    """Print and write what a dispersal made.

    Args:
        folder: of the run.
        facts: those of ``dispersal.json``.
        clusters: in order.
    """
    result_console().print(cluster_table(clusters, _title(facts)))
    write_json(folder / REPORT, {**facts, "cluster": [asdict(cluster) for cluster in clusters]})
    write_text(folder / TEXT, _markdown(facts, clusters, sorted(path.name for path in folder.glob("plots/*.png"))))


def cluster_table(clusters: Sequence[Cluster], title: str) -> Table:
    """Lay out sizes, sources and lengths."""
    headers = ("cluster", "rows", "share", "words asked", "words answered", "sources")
    table = Table(*headers, title=title, header_style="bold", title_justify="left")
    for row in _rows(clusters):
        table.add_row(*row)
    return table


def _rows(clusters: Sequence[Cluster]) -> list[list[str]]:
    total = sum(cluster.rows for cluster in clusters)
    return [
        [
            str(number),
            str(cluster.rows),
            f"{cluster.rows / total:.1%}",
            f"{cluster.instruction_words:.1f}",
            f"{cluster.output_words:.1f}",
            _sources(cluster),
        ]
        for number, cluster in enumerate(clusters)
    ]


def _sources(cluster: Cluster) -> str:
    named = [f"{name} {count / cluster.rows:.0%}" for name, count in list(cluster.sources.items())[:SHOWN]]
    more = len(cluster.sources) - SHOWN
    return ", ".join(named) + (f", {more} more" if more > 0 else "")


def _title(facts: dict[str, Any]) -> str:
    kmeans = facts.get("kmeans")
    how = f"{facts['method']} ({kmeans['algorithm']})" if kmeans else str(facts["method"])
    return f"{facts['rows']} rows in {facts['clusters']} clusters: {how}, variant={facts['variant']}"


def _markdown(facts: dict[str, Any], clusters: Sequence[Cluster], plots: Sequence[str]) -> str:
    lines = [f"# {_title(facts)}", ""]
    lines += [f"- {facts['held_out']} rows held out, {facts['rejected']} rows that did not fit left out"]
    if embedding := facts.get("embedding"):
        lines += [
            f"- embeddings: {embedding['model']}, {embedding['text']}, {embedding['dim']} numbers, texts cut at "
            f"{embedding['max_seq_length']} tokens"
        ]
    if kmeans := facts.get("kmeans"):
        lines += ["- k-means: " + ", ".join(f"{name} {_number(value)}" for name, value in kmeans.items())]
    headers = ["cluster", "rows", "share", "words asked", "words answered", "sources"]
    lines += ["", *_markdown_table(headers, _rows(clusters))]
    for number, cluster in enumerate(clusters):
        if cluster.nearest:
            rows = [
                [str(entry["row"] + 1), f"{entry['distance']:.3f}", entry["instruction"], entry["output"]]
                for entry in cluster.nearest
            ]
            lines += ["", f"## Cluster {number}: rows nearest to its centroid", ""]
            lines += _markdown_table(["line", "distance", "instruction", "response"], rows)
    for name in plots:
        lines += ["", f"![{name.removesuffix('.png')}](plots/{name})"]
    return "\n".join(lines) + "\n"


def _markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [list(headers), ["---"] * len(headers), *([_cell(cell) for cell in row] for row in rows)]
    return ["| " + " | ".join(row) + " |" for row in cells]


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "\\`")


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
