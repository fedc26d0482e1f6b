"""A language model held merged, whose only unknowns are the ratios of its groups.

Memory: two models, ``merged`` (weights W, and D = P - Q for what is learned) or ``pair`` (P and Q), see
:mod:`~reproalign.ama.adapt.gradient`. W has the bits that ``ama average`` writes: adding Δa D to it would lose what a
16-bit weight cannot hold (at the published step size all of it), and drift in any precision. So when ratios move,
``merged`` computes W again from the files of P and Q, while ``pair`` has nothing to read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from reproalign.ama.adapt.gradient import Blend, Merge, MergedLinear, Scratch, inner, merge_into
from reproalign.ama.adapt.learned import PRE, SECOND, LearnedParameter
from reproalign.ama.adapt.pair import Pair, Tensors, merge
from reproalign.ama.tensors import BASE, TensorRule
from reproalign.common.config.model import LogprobsConfig
from reproalign.common.logprobs.model import install_completion_logps
from reproalign.common.models.forward import replace_forward

KEY = "ratio"  # of the changed forwards
MERGED, PAIR = "merged", "pair"  # what is held: W and D, or P and Q


class RatioModel:
    """A causal language model as a function of its ratios.

    ``network(input_ids, …, completion_mask=…)`` answers with log-probabilities; their backward fills the gradients that
    :meth:`take_gradient` returns.

    Attributes:
        network: the model, which computes with the weights merged at the current ratios.
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
        held: str = MERGED,
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
            held: ``merged`` for many rows at the same ratios | ``pair`` for ratios that move often. P and Q are held
                in the network's dtype. Outside linear layers ``pair`` holds W as well: it is then two models, and one
                more copy of the norms, embeddings, head and stacked experts that are learned.
            chunk_size: token positions whose logits exist at once; None: chosen from the vocabulary.

        Raises:
            UserError: see :meth:`.Pair.locate`.
        """
        self.network = network
        self.names = [*rule.parts.names, *([BASE] if with_base else [])]
        self.learned: list[LearnedParameter] = []
        self._pair, self._merge, self._held, self._scratch = pair, merge, held, Scratch()
        start = {**ratios, **({BASE: base} if with_base else {})}
        self.ratios = torch.tensor([start[name] for name in self.names], dtype=torch.float64)
        self._leaves = [torch.zeros((), dtype=torch.float64, device=network.device) for _ in self.names]
        for leaf in self._leaves:
            leaf.requires_grad_()
        located = pair.locate(network, rule)
        self._load(located, base)
        install_completion_logps(network, LogprobsConfig(chunk_size=chunk_size))
        self._tap()

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return self.network.device

    @torch.no_grad()
    def set_ratios(self, ratios: Sequence[float] | Float[Tensor, " groups"]) -> None:
        """Compute at other ratios; the bits of the weights are those of a merge into a new model.

        Args:
            ratios: one for each of :attr:`names`.
        """
        wanted = torch.as_tensor(ratios, dtype=torch.float64).cpu()
        moved = (wanted != self.ratios).tolist()
        self.ratios = wanted.clone()
        for entry in self.learned:
            if not moved[entry.group]:
                continue
            ratio = float(wanted[entry.group])
            if not entry.paired:
                self._pair.fill(entry.tensors, entry.first, partial(self._merge, ratio=ratio))
            elif not entry.linear:
                merge_into(entry.first, entry.pre, entry.second, self._merge, ratio)

    def blend(self, group: int) -> Blend:
        """Return what makes W and D of P and Q at a group's current ratio."""
        return Blend(self._merge, float(self.ratios[group]), self._scratch)

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
            if entry.first.dim() > 1:
                found[entry.group].append(owner)
        return found

    @torch.no_grad()
    def _load(self, located: Sequence[Tensors], base: float) -> None:
        index = {name: number for number, name in enumerate(self.names)}
        places = {tensors.parameter: tensors.place for tensors in located}
        in_linear = self._in_linear({name for name, place in places.items() if place in index})
        paired = self._held == PAIR
        for tensors in located:
            path, _, key = tensors.parameter.rpartition(".")
            parameter = self.network.get_parameter(tensors.parameter)
            parameter.requires_grad_(False)
            group = index.get(tensors.place) if isinstance(tensors.place, str) else None
            if group is None:
                fixed = base if tensors.place == BASE else float(tensors.place)
                self._pair.fill(tensors, parameter, partial(self._merge, ratio=fixed))
                continue
            linear = tensors.parameter in in_linear
            entry = LearnedParameter(tensors, group, self.network.get_submodule(path), key, linear, paired)
            merged = partial(self._merge, ratio=float(self.ratios[group]))
            self._pair.fill(tensors, parameter, _pre if paired and linear else merged)
            self._add(entry, SECOND, _post if paired else _difference)
            if paired and not linear:
                self._add(entry, PRE, _pre)
            self.learned.append(entry)

    def _add(self, entry: LearnedParameter, suffix: str, combine: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Put a tensor beside a learned parameter, in its module, so that it is moved and sharded alike."""
        beside = nn.Parameter(torch.empty_like(entry.first), requires_grad=False)
        self._pair.fill(entry.tensors, beside, combine)
        entry.module.register_parameter(entry.key + suffix, beside)

    def _in_linear(self, learned: set[str]) -> set[str]:
        """Return which learned parameters plain linear layers use, all of whose parameters are learned."""
        head = self.network.get_output_embeddings()
        found: set[str] = set()
        for name, module in self.network.named_modules():
            own = {f"{name}.{key}" for key, _ in module.named_parameters(recurse=False)}
            # The head is read by the chunked log-probs, and may be the embedding too.
            if module is not head and _is_plain(module) and own <= learned:
                found |= own
        return found

    def _tap(self) -> None:
        """Take each ratio's gradient where its tensors are used: in linear layers, or as their own gradients come."""
        for entry in self.learned:
            if not entry.linear:
                entry.first.requires_grad_()
                entry.first.register_post_accumulate_grad_hook(partial(self._collect, entry))
            elif entry.key == "weight":
                self._tap_linear(entry)

    def _tap_linear(self, entry: LearnedParameter) -> None:
        transposed, group = isinstance(entry.module, Conv1D), entry.group
        leaf = self._leaves[group]

        def forward(module: Any, x: Tensor) -> Tensor:
            second_bias = None if module.bias is None else getattr(module, f"bias{SECOND}")
            matrices = (module.weight, getattr(module, f"weight{SECOND}"), module.bias, second_bias)
            blend = self.blend(group) if entry.paired else None
            made: Tensor = MergedLinear.apply(x, leaf, *matrices, blend, transposed)  # type: ignore[no-untyped-call]
            return made

        replace_forward(entry.module, KEY, forward)

    def shard(self, mesh: DeviceMesh) -> None:
        """Divide the layers' weights and differences over processes (FSDP2); each is whole only while it is used.

        Embeddings, the head and what is learned outside linear layers (norms) stay whole in every process.

        Args:
            mesh: of the processes.
        """
        whole = {parameter for entry in self.learned if not entry.linear for parameter in entry.held()}
        layers = next(
            module
            for module in self.network.modules()
            if isinstance(module, nn.ModuleList) and len(module) == self._pair.blocks.layers
        )
        for layer in layers:
            fully_shard(layer, mesh=mesh, ignored_params=whole)

    def _collect(self, entry: LearnedParameter, weight: Tensor) -> None:
        """Add ⟨dL/dW, D⟩ as soon as dL/dW is there, and let that go."""
        assert weight.grad is not None
        leaf = self._leaves[entry.group]
        found = inner(weight.grad, entry.difference(self.blend(entry.group))).to(leaf)
        leaf.grad = found if leaf.grad is None else leaf.grad + found
        weight.grad = None


def _pre(pre: Tensor, post: Tensor) -> Tensor:
    return pre


def _post(pre: Tensor, post: Tensor) -> Tensor:
    return post


def _difference(pre: Tensor, post: Tensor) -> Tensor:
    wide = torch.promote_types(pre.dtype, torch.float32)
    return pre.to(wide) - post.to(wide)


def _is_plain(module: nn.Module) -> bool:
    """Say whether a module computes x Wᵀ + b and nothing else."""
    return isinstance(module, Conv1D) or (isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward)
