"""A language model held merged, whose only unknowns are the ratios of its groups.

Memory: the network with merged weights W, and D = P - Q for what is learned: two models. When the ratios move, W is
computed again from the files of P and Q, entry for entry as ``ama average`` does: adding Δa D to W would lose what a
16-bit weight cannot hold (at the published step size all of it), and drift in any precision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from reproalign.ama.adapt.gradient import MergedLinear, inner
from reproalign.ama.adapt.pair import CHUNK, Pair, Tensors, merge
from reproalign.ama.tensors import BASE, TensorRule
from reproalign.common.logprobs.model import install_completion_logps
from reproalign.common.models.forward import replace_forward

KEY = "ratio"  # of the changed forwards
DIFFERENCE = "_difference"  # what D is called beside W
Merge = Callable[[Tensor, Tensor, float], Tensor]
Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Learned:
    """A parameter W whose ratio is learned; beside it in its module stands D = P - Q, of the same shape and dtype.

    Attributes:
        tensors: its name and where it is read.
        group: index of its ratio.
        module: that holds it.
        key: its name there.
    """

    tensors: Tensors
    group: int
    module: nn.Module
    key: str

    @property
    def weight(self) -> nn.Parameter:
        """W, or this process's shard of it."""
        return cast(nn.Parameter, getattr(self.module, self.key))

    @property
    def difference(self) -> nn.Parameter:
        """D, or this process's shard of it."""
        return cast(nn.Parameter, getattr(self.module, self.key + DIFFERENCE))


class RatioModel:
    """A causal language model as a function of its ratios.

    ``network(input_ids, …, completion_mask=…)`` answers with log-probabilities; their backward fills the gradients that
    :meth:`take_gradient` returns.

    Attributes:
        network: the model, with its weights merged at the current ratios.
        names: of the groups; the last one is ``base`` where the base ratio is learned about too.
        ratios: in force, one for each group, float64.
        learned: what depends on them.
    """

    def __init__(
        self,
        network: PreTrainedModel,
        pair: Pair,
        rule: TensorRule,
        ratios: Mapping[str, float],
        *,
        base: float,
        with_base: bool = False,
        merge: Merge = merge,
        chunk_size: int | None = None,
    ) -> None:
        """Merge the weights of ``network`` in place, and let it compute gradients of the ratios.

        Args:
            network: any weights of the architecture, on its device; in eval mode, frozen.
            pair: where P and Q are read.
            rule: which tensors are averaged.
            ratios: of the groups, to begin with.
            base: α, of what no group holds.
            with_base: take the gradient of the base ratio as well, as if it were one more group.
            merge: of P, Q and a ratio.
            chunk_size: token positions whose logits exist at once; None: chosen from the vocabulary.

        Raises:
            UserError: see :meth:`.Pair.locate`.
        """
        self.network = network
        self.names = [*rule.parts.names, *([BASE] if with_base else [])]
        self.learned: list[Learned] = []
        self._pair, self._merge = pair, merge
        start = {**ratios, **({BASE: base} if with_base else {})}
        self.ratios = torch.tensor([start[name] for name in self.names], dtype=torch.float64)
        self._leaves = [torch.zeros((), dtype=torch.float64, device=network.device) for _ in self.names]
        for leaf in self._leaves:
            leaf.requires_grad_()
        located = pair.locate(network, rule)
        self._load(located, base)
        install_completion_logps(network, chunk_size=chunk_size)
        self._tap({entry.tensors.parameter: entry for entry in self.learned})

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return self.network.device

    @torch.no_grad()
    def set_ratios(self, ratios: Sequence[float] | Float[Tensor, " groups"]) -> None:
        """Merge the weights at other ratios; the bits are those of a merge into a new model.

        Args:
            ratios: one for each of :attr:`names`.
        """
        wanted = torch.as_tensor(ratios, dtype=torch.float64).cpu()
        moved = (wanted != self.ratios).tolist()
        for entry in self.learned:
            if moved[entry.group]:
                self._write(entry.tensors, entry.weight, float(wanted[entry.group]))
        self.ratios = wanted.clone()

    def take_gradient(self) -> Float[Tensor, " groups"]:
        """Return the gradients that backward passes have added up since the last call, and begin anew; float64."""
        gradients = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in self._leaves]
        for leaf in self._leaves:
            leaf.grad = None
        return torch.stack(gradients).cpu()

    def linear_layers(self) -> list[list[str]]:
        """Return, for each group, the names of the linear layers that are learned about."""
        found: list[list[str]] = [[] for _ in self.names]
        for entry in self.learned:
            owner = entry.tensors.parameter.rpartition(".")[0]
            if entry.weight.dim() > 1:
                found[entry.group].append(owner)
        return found

    @torch.no_grad()
    def _load(self, located: Sequence[Tensors], base: float) -> None:
        index = {name: number for number, name in enumerate(self.names)}
        for tensors in located:
            path, _, key = tensors.parameter.rpartition(".")
            module = self.network.get_submodule(path)
            weight = self.network.get_parameter(tensors.parameter)
            weight.requires_grad_(False)
            group = index.get(tensors.place) if isinstance(tensors.place, str) else None
            if group is None:
                self._write(tensors, weight, base if tensors.place == BASE else float(tensors.place))
                continue
            difference = nn.Parameter(torch.empty_like(weight), requires_grad=False)
            self._write(tensors, weight, float(self.ratios[group]))
            self._write(tensors, difference, subtract=True)
            module.register_parameter(key + DIFFERENCE, difference)
            self.learned.append(Learned(tensors, group, module, key))

    @torch.no_grad()
    def _write(self, tensors: Tensors, target: Tensor, ratio: float = 0.0, *, subtract: bool = False) -> None:
        """Fill a tensor with the merge at a ratio, or with P - Q, a slice at a time."""
        first, flat = local_entries(target)
        for start in range(0, flat.numel(), CHUNK):
            stop = min(start + CHUNK, flat.numel())
            pre, post = (part.to(flat.device) for part in self._pair.read(tensors, first + start, first + stop))
            wide = torch.promote_types(pre.dtype, torch.float32)
            value = pre.to(wide) - post.to(wide) if subtract else self._merge(pre, post, ratio)
            flat[start:stop].copy_(value)

    def _tap(self, learned: dict[str, Learned]) -> None:
        """Take each ratio's gradient where its tensors are used: in linear layers, or as their own gradients come."""
        head = self.network.get_output_embeddings()
        for name, module in self.network.named_modules():
            own = {key: learned.get(f"{name}.{key}") for key in ("weight", "bias")}
            # The head is read by the chunked log-probs, and may be the embedding too.
            if own["weight"] is None or module is head or not _is_plain(module):
                continue
            if module.bias is not None and own["bias"] is None:
                continue
            for key in own:
                learned.pop(f"{name}.{key}", None)
            self._tap_linear(module, own["weight"])
        for entry in learned.values():
            entry.weight.requires_grad_()
            entry.weight.register_post_accumulate_grad_hook(partial(self._collect, entry))

    def _tap_linear(self, module: nn.Module, weight: Learned) -> None:
        transposed = isinstance(module, Conv1D)
        leaf = self._leaves[weight.group]

        def forward(self: Any, x: Tensor) -> Tensor:
            matrices = (self.weight, self.weight_difference)
            held, difference = (matrix.T for matrix in matrices) if transposed else matrices
            bias_difference = None if self.bias is None else self.bias_difference
            made: Tensor = MergedLinear.apply(  # type: ignore[no-untyped-call]
                x, leaf, held, difference, self.bias, bias_difference
            )
            return made

        replace_forward(module, KEY, forward)

    def shard(self, mesh: DeviceMesh) -> None:
        """Divide the layers' weights and differences over processes (FSDP2); each is whole only while it is used.

        Embeddings, the head and what is learned outside linear layers (norms) stay whole in every process.

        Args:
            mesh: of the processes.
        """
        whole = {
            parameter
            for entry in self.learned
            if entry.weight.requires_grad
            for parameter in (entry.weight, entry.difference)
        }
        layers = next(
            module
            for module in self.network.modules()
            if isinstance(module, nn.ModuleList) and len(module) == self._pair.blocks.layers
        )
        for layer in layers:
            fully_shard(layer, mesh=mesh, ignored_params=whole)

    def _collect(self, entry: Learned, weight: Tensor) -> None:
        """Add ⟨dL/dW, D⟩ as soon as dL/dW is there, and let that go."""
        assert weight.grad is not None
        leaf = self._leaves[entry.group]
        found = inner(weight.grad, entry.difference).to(leaf)
        leaf.grad = found if leaf.grad is None else leaf.grad + found
        weight.grad = None


def local_entries(tensor: Tensor) -> tuple[int, Float[Tensor, " entries"]]:
    """Return the flattened entries that this process holds, and the index of the first of them."""
    if not isinstance(tensor, DTensor):
        return 0, tensor.view(-1)
    mesh, local = tensor.device_mesh, tensor.to_local()
    # FSDP2 divides rows as torch.chunk does.
    rows = min(-(-tensor.shape[0] // mesh.size()) * mesh.get_local_rank(), tensor.shape[0])
    return rows * (tensor.numel() // tensor.shape[0]), local.view(-1)


def _is_plain(module: nn.Module) -> bool:
    """Say whether a module computes x Wᵀ + b and nothing else."""
    return isinstance(module, Conv1D) or (isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward)
