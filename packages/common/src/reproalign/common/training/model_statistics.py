"""Measuring a model on rows of tokens: diagonal Fisher information, and Gram matrices of linear layers' inputs.

Both are written as :mod:`reproalign.common.merging.statistics` describes. Rows are read one at a time, since the Fisher
information squares the gradient of every single row. Only the sums of some tensors are in memory at once: with less
memory the rows are read several times, for a part of the tensors each. A part is a file, and finished files survive an
interruption.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from reproalign.common.console import note_console
from reproalign.common.errors import UserError, choose
from reproalign.common.files import sha256_json, write_json
from reproalign.common.logprobs.model import install_completion_logps
from reproalign.common.merging.statistics import FACTS, KINDS, write_facts, write_statistics

LABELS = ("data", "model")
JOURNAL = "progress.json"
Row = Mapping[str, Any]  # input_ids and labels, -100 where nothing is supervised
Sums = dict[str, Tensor]


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
    choose("kind", kind, KINDS)
    if kind == "fisher":
        return {name: tuple(value.shape) for name, value in model.named_parameters() if value.is_floating_point()}
    return {name: (inputs, inputs) for name, (_, inputs) in _linear_layers(model).items()}


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
    choose("labels", request.labels, LABELS)
    if not len(rows) or not names:
        raise UserError("there is nothing to measure: no rows, or no tensors")
    shapes = measurable(model, request.kind)
    groups = list(_groups({name: shapes[name] for name in names}, request.memory))
    folder.mkdir(parents=True, exist_ok=True)
    done = _finished(folder, sha256_json([request.kind, request.labels, groups, len(rows)]))
    model.eval()
    model.requires_grad_(False)
    tokens = done.get("tokens", 0)
    with _progress(len(groups) * len(rows), request.kind) as advance:
        for number, group in enumerate(groups):
            file = folder / f"{request.kind}-{number + 1:05}-of-{len(groups):05}.safetensors"
            if file.is_file() and file.name in done["files"]:
                advance(len(rows))
                continue
            sums, tokens = _measure(model, rows, group, request, advance)
            write_statistics(file, sums)
            done["files"].append(file.name)
            write_json(folder / JOURNAL, done | {"tokens": tokens})
    labels = request.labels if request.kind == "fisher" else None
    write_facts(folder, kind=request.kind, rows=len(rows), tokens=tokens, labels=labels, model=named)
    (folder / JOURNAL).unlink()
    return {"rows": len(rows), "tokens": tokens, "tensors": len(names), "passes": len(groups)}


def _measure(
    model: PreTrainedModel, rows: Sequence[Row], names: Sequence[str], request: Request, advance: Callable[[int], None]
) -> tuple[Sums, int]:
    if request.kind == "gram":
        return gram_matrices(model, rows, names, advance)
    return fisher_information(model, rows, names, labels=request.labels, advance=advance)


def fisher_information(
    model: PreTrainedModel,
    rows: Sequence[Row],
    names: Sequence[str],
    *,
    labels: str = "data",
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[Sums, int]:
    """Return F_i = 1/N Σ_n (∂ log p(y_n | x_n) / ∂θ_i)² of some parameters, and the number of supervised tokens.

    log p is the sum over the supervised tokens of a row, not their mean (arXiv 2111.09832, Section 3.2). Gradients are
    squared and added up as each is made, in float32 or better, so that only one is in memory at a time.

    Args:
        model: frozen; thawed and frozen again where it is measured.
        rows: N rows.
        names: of the parameters.
        labels: ``data``: y_n of the row; ``model``: at each supervised place the token that the model finds likeliest,
            given the row's own tokens before it.
        advance: is told of every row.

    Raises:
        RuntimeError: for a gradient that is not finite.
    """
    parameters = {name: value for name, value in model.named_parameters() if name in set(names)}
    sums = {name: _zeros(value, tuple(value.shape)) for name, value in parameters.items()}
    hooks = []
    for name, value in parameters.items():
        value.requires_grad_(True)
        hooks.append(value.register_post_accumulate_grad_hook(_adder(sums[name])))
    install_completion_logps(model)
    tokens = 0
    try:
        for number, row in enumerate(rows):
            ids, mask = _ids(model, row), _supervised(model, row)
            _log_likelihood(model, ids, mask, labels).backward()
            tokens += int(mask[:, 1:].sum())
            if number == 0 and not all(bool(total.isfinite().all()) for total in sums.values()):
                raise RuntimeError("the gradients are not finite; set model.dtype=float32 or bfloat16")
            advance(1)
    finally:
        for hook in hooks:
            hook.remove()
        for value in parameters.values():
            value.requires_grad_(False)
    for name, total in sums.items():
        if not bool(total.div_(len(rows)).isfinite().all()):
            raise RuntimeError(f"the Fisher information of '{name}' is not finite; set model.dtype=float32 or bfloat16")
    return sums, tokens


@torch.no_grad()
def gram_matrices(
    model: PreTrainedModel,
    rows: Sequence[Row],
    names: Sequence[str],
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[Sums, int]:
    """Return G = 1/T Σ_t x_t x_tᵀ of the inputs of some linear layers over the T tokens of all rows, and T.

    Args:
        model: that is run.
        rows: all of whose tokens count.
        names: of the layers' weights.
        advance: is told of every row.
    """
    layers = _linear_layers(model)
    weights = dict(model.named_parameters())
    sums = {name: _zeros(weights[name], (layers[name][1],) * 2) for name in names}
    hooks = [layers[name][0].register_forward_pre_hook(_outer_adder(total)) for name, total in sums.items()]
    tokens = 0
    try:
        for row in rows:
            ids = _ids(model, row)
            model(input_ids=ids, use_cache=False, logits_to_keep=1)
            tokens += ids.numel()
            advance(1)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: total.div_(tokens) for name, total in sums.items()}, tokens


def _log_likelihood(model: PreTrainedModel, ids: Tensor, mask: Tensor, labels: str) -> Tensor:
    if labels == "data":
        found: Tensor = model(input_ids=ids, completion_mask=mask, use_cache=False).sums.sum()
        return found
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1][mask[:, 1:]]
    wide = logits if logits.dtype == torch.float64 else logits.float()
    likeliest: Tensor = wide.log_softmax(-1).amax(-1).sum()
    return likeliest


def _adder(total: Tensor) -> Callable[[Tensor], None]:
    def add(parameter: Tensor) -> None:
        assert parameter.grad is not None
        total.add_(parameter.grad.to(total.dtype).square_())
        parameter.grad = None

    return add


def _outer_adder(total: Tensor) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def add(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = inputs[0].reshape(-1, inputs[0].shape[-1]).to(total.dtype)
        total.addmm_(x.mT, x)

    return add


def _linear_layers(model: PreTrainedModel) -> dict[str, tuple[nn.Module, int]]:
    """Return the linear layers but the head, and how many inputs each has, by the name of its weight."""
    head = model.get_output_embeddings()
    found: dict[str, tuple[nn.Module, int]] = {}
    for name, module in model.named_modules():
        if module is not head and isinstance(module, nn.Linear | Conv1D):
            inputs = module.in_features if isinstance(module, nn.Linear) else module.nx
            found[f"{name}.weight"] = module, int(inputs)
    return found


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
    try:
        left: dict[str, Any] = json.loads((folder / JOURNAL).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        left = {}
    if left.get("identity") == identity:
        return left
    for path in (*folder.glob("*.safetensors"), folder / FACTS):  # which would call the folder whole
        path.unlink(missing_ok=True)
    return {"identity": identity, "files": []}


def _zeros(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.zeros(shape, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)


def _ids(model: PreTrainedModel, row: Row) -> Tensor:
    return torch.tensor([list(row["input_ids"])], device=model.device)


def _supervised(model: PreTrainedModel, row: Row) -> Tensor:
    return torch.tensor([list(row["labels"])], device=model.device) != -100


@contextmanager
def _progress(total: int, what: str) -> Iterator[Callable[[int], None]]:
    columns = (
        TextColumn(f"{what}: rows"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=note_console()) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)
