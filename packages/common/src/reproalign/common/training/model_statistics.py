"""Measuring a model on rows of tokens: diagonal Fisher information, and Gram matrices of linear layers' inputs.

Both are written as :mod:`reproalign.common.merging.statistics` describes. Rows are read one at a time, since the Fisher
information squares the gradient of every single row. Only the sums of some tensors are in memory at once: with less
memory the rows are read several times, for a part of the tensors each. A part is a file, and finished files survive an
interruption.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from reproalign.common.console import counting
from reproalign.common.errors import UserError
from reproalign.common.files import sha256_json
from reproalign.common.manifests import digest_of, seal
from reproalign.common.merging.statistics import FACTS, write_facts, write_statistics
from reproalign.common.signing import read_signed, write_signed
from reproalign.common.training.row_statistics import Row, Sums, fisher_information, gram_matrices, linear_layers

JOURNAL = "progress.json"


@dataclass(frozen=True)
class Request:
    """What is to be measured.

    Attributes:
        kind: fisher or gram.
        labels: of ``fisher``: data (the row's own) or model (arg-max of its logits at the supervised places).
        memory: bytes of sums at once.
    """

    kind: str
    labels: str
    memory: int


def measurable(model: PreTrainedModel, kind: str) -> dict[str, tuple[int, ...]]:
    """Return the names of the tensors that can be measured, and the shapes of their statistics.

    For ``fisher`` every parameter; for ``gram`` the weights of the linear layers but for the output head.
    """
    if kind == "fisher":
        return {name: tuple(value.shape) for name, value in model.named_parameters() if value.is_floating_point()}
    return {name: (inputs, inputs) for name, (_, inputs) in linear_layers(model).items()}


def choose_tensors(known: Mapping[str, tuple[int, ...]], patterns: Sequence[str]) -> list[str]:
    """Return the names that match one of the patterns (``*.mlp.*``), in the order in which they are known.

    Raises:
        UserError: for a pattern that none matches.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            example = next(iter(known), "none")
            raise UserError(f"tensors: '{pattern}' matches no tensor that can be measured (such as '{example}')")
    return [name for name in known if any(fnmatchcase(name, pattern) for pattern in patterns)]


def write_model_statistics(
    folder: Path, model: PreTrainedModel, rows: Sequence[Row], names: Sequence[str], request: Request, *, named: str
) -> dict[str, int]:
    """Measure a model and write the folder of statistics.

    Args:
        folder: written to; finished files of the same measurement in it are kept.
        model: on its device; its forward is changed in place, and its parameters' ``requires_grad``.
        rows: each with a supervised token.
        names: of the tensors, see :func:`choose_tensors`.
        request: what is measured.
        named: what the user calls the model.

    Returns:
        ``rows``, ``tokens`` (supervised for ``fisher``, all for ``gram``), ``tensors`` and ``passes``.

    Raises:
        UserError: for no rows or no tensors.
        RuntimeError: for a gradient that is not finite, naming its row.
    """
    if not len(rows) or not names:
        raise UserError("there is nothing to measure: no rows, or no tensors")
    shapes = measurable(model, request.kind)
    groups = list(_groups({name: shapes[name] for name in names}, request.memory))
    folder.mkdir(parents=True, exist_ok=True)
    done = _finished(folder, sha256_json([request.kind, request.labels, groups, len(rows)]))
    model.eval()
    model.requires_grad_(False)
    tokens = done.get("tokens", 0)
    with counting(f"{request.kind}: rows", len(groups) * len(rows)) as advance:
        for number, group in enumerate(groups):
            file = folder / f"{request.kind}-{number + 1:05}-of-{len(groups):05}.safetensors"
            if file.is_file() and digest_of(file) == done["files"].get(file.name):
                advance(len(rows))
                continue
            sums, tokens = _measure(model, rows, group, request, advance)
            write_statistics(file, sums)
            done["files"][file.name] = digest_of(file)
            write_signed(folder / JOURNAL, done | {"tokens": tokens})
    labels = request.labels if request.kind == "fisher" else None
    write_facts(folder, kind=request.kind, rows=len(rows), tokens=tokens, labels=labels, model=named)
    (folder / JOURNAL).unlink()
    seal(folder)
    return {"rows": len(rows), "tokens": tokens, "tensors": len(names), "passes": len(groups)}


def _measure(
    model: PreTrainedModel, rows: Sequence[Row], names: Sequence[str], request: Request, advance: Callable[[int], None]
) -> tuple[Sums, int]:
    if request.kind == "gram":
        return gram_matrices(model, rows, names, advance)
    return fisher_information(model, rows, names, labels=request.labels, advance=advance)


def _groups(shapes: Mapping[str, tuple[int, ...]], memory: int) -> Iterator[list[str]]:
    """Put tensors together whose sums, in float32, fit into ``memory``; a larger one is by itself."""
    group: list[str] = []
    filled = 0
    for name, shape in shapes.items():
        size = 4 * prod(shape)
        if group and filled + size > memory:
            yield group
            group, filled = [], 0
        group.append(name)
        filled += size
    yield group


def _finished(folder: Path, identity: str) -> dict[str, Any]:
    """Return what an interrupted measurement of the same has left; files of another are removed."""
    left = read_signed(folder / JOURNAL)
    if left.get("identity") == identity:
        return left
    for path in (*folder.glob("*.safetensors"), folder / FACTS):  # which would call the folder whole
        path.unlink(missing_ok=True)
    return {"identity": identity, "files": {}}
