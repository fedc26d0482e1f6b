"""Fisher information and Gram matrices, summed over rows of tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from reproalign.common.logprobs.model import install_completion_logps

Row = Mapping[str, Any]  # input_ids and labels, -100 where nothing is supervised
Sums = dict[str, Tensor]


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
    layers = linear_layers(model)
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


def linear_layers(model: PreTrainedModel) -> dict[str, tuple[nn.Module, int]]:
    """Return the linear layers but the head, and how many inputs each has, by the name of its weight."""
    head = model.get_output_embeddings()
    found: dict[str, tuple[nn.Module, int]] = {}
    for name, module in model.named_modules():
        if module is not head and isinstance(module, nn.Linear | Conv1D):
            inputs = module.in_features if isinstance(module, nn.Linear) else module.nx
            found[f"{name}.weight"] = module, int(inputs)
    return found


def _zeros(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.zeros(shape, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)


def _ids(model: PreTrainedModel, row: Row) -> Tensor:
    return torch.tensor([list(row["input_ids"])], device=model.device)


def _supervised(model: PreTrainedModel, row: Row) -> Tensor:
    return torch.tensor([list(row["labels"])], device=model.device) != -100
