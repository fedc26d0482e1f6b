"""The models before and after RLHF, opened side by side: read slice by slice, neither held in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from reproalign.ama.inputs import check_there
from reproalign.ama.tensors import TensorRule
from reproalign.common.errors import UserError
from reproalign.common.merging import methods
from reproalign.common.merging.adapted import AdaptedCheckpoint
from reproalign.common.merging.blocks import Blocks
from reproalign.common.merging.compatibility import agree
from reproalign.common.merging.config import MergeConfig
from reproalign.common.merging.inputs import Model, open_inputs
from reproalign.common.merging.resolving import resolve

CHUNK = 1 << 24  # entries that are read and merged at a time


@dataclass(frozen=True)
class Tensors:
    """One parameter of the network and where the two models have it.

    Attributes:
        parameter: its name in the network.
        names: in the file of pre and of post; empty if the files lay it out otherwise than the network (experts).
        place: of the rule: group, ``base``, or a fixed ratio.
    """

    parameter: str
    names: tuple[str, ...]
    place: str | float


@dataclass
class Pair:
    """Two models that fit.

    Attributes:
        models: pre and post.
        blocks: of their architecture.
        names: of each tensor in the file of pre and of post, by pre's name.
        notes: what differs without harm.
    """

    models: Sequence[Model]
    blocks: Blocks
    names: Mapping[str, Sequence[str]]
    notes: Sequence[str]
    _kept: dict[str, list[Tensor]] = field(default_factory=dict)

    def read(self, tensors: Tensors, start: int, stop: int) -> tuple[Float[Tensor, " part"], Float[Tensor, " part"]]:
        """Return the entries ``start`` to ``stop`` of the flattened tensor, of pre and of post, as stored."""
        if not tensors.names:
            pre, post = (whole.reshape(-1)[start:stop] for whole in self._kept[tensors.parameter])
            return pre, post
        pre, post = (model.read(name, start, stop) for model, name in zip(self.models, tensors.names, strict=True))
        return pre, post

    @torch.no_grad()
    def fill(self, tensors: Tensors, target: Tensor, combine: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Fill a tensor, or this process's shard of it, a slice at a time.

        Args:
            tensors: what to read.
            target: of the parameter's shape.
            combine: a slice of pre and the same one of post to a slice of ``target``.
        """
        first, flat = _local_entries(target)
        for start in range(0, flat.numel(), CHUNK):
            stop = min(start + CHUNK, flat.numel())
            pre, post = (part.to(flat.device) for part in self.read(tensors, first + start, first + stop))
            flat[start:stop].copy_(combine(pre, post))

    def check_kept(self, parameters: Sequence[str]) -> None:
        """Refuse adapters of models with parameters that :meth:`keep` takes from loaded, unadapted models.

        Raises:
            UserError: naming the adapter.
        """
        for model in self.models:
            if isinstance(model, AdaptedCheckpoint):
                raise UserError(
                    f"{model.label}: its base stores {parameters[0]} otherwise than it is loaded, so that the adapter "
                    "cannot be folded in on the way; fold it by `reproalign merge` first"
                )

    def keep(self, model: nn.Module, parameters: Sequence[str]) -> None:
        """Keep parameters that the files lay out otherwise than the network; call it for pre, then for post."""
        for name in parameters:
            self._kept.setdefault(name, []).append(model.get_parameter(name).detach().cpu().clone())

    def locate(self, network: nn.Module, rule: TensorRule) -> list[Tensors]:
        """Find every parameter of a network in the files, and where its ratio comes from.

        Args:
            network: loaded by transformers, whose names lack or have a prefix that the files have or lack.
            rule: which tensors are averaged.

        Returns:
            Every parameter; those that :meth:`keep` has to be called for have no names.
        """
        prefix = f"{network.base_model_prefix}."
        by_parameter: dict[str, str] = {}
        for name in self.names:
            for candidate in (name, f"{prefix}{name}", name.removeprefix(prefix)):
                by_parameter.setdefault(candidate, name)
        parameters = [name for name, _ in network.named_parameters()]
        used = {by_parameter[name] for name in parameters if name in by_parameter}
        # Experts that transformers stacks when it loads them: the ratio of a layer's experts is that of any of them.
        experts = {self.blocks.block(name).layer: name for name in self.names if name not in used}
        found = []
        for parameter in parameters:
            stored = by_parameter.get(parameter)
            if stored is not None:
                found.append(Tensors(parameter, tuple(self.names[stored]), rule.place(stored)))
                continue
            layer = self.blocks.block(parameter).layer
            standing_in = parameter if layer is None else experts.get(layer, parameter)
            found.append(Tensors(parameter, (), rule.place(standing_in)))
        return found


@contextmanager
def open_pair(pre: str, post: str, allow: Sequence[str] = ()) -> Iterator[Pair]:
    """Open two models and check that their tensors fit; the files are closed at the end of the block.

    Args:
        pre: folder or Hub id of the model before RLHF; an adapter is folded into its base.
        post: of the model after.
        allow: differences to accept, see ``reproalign merge``.

    Raises:
        UserError: naming the first tensor that does not fit, or what cannot be read.
    """
    check_there({"pre": pre, "post": post}, allow_bin="bin" in allow)
    settings = resolve(MergeConfig(models=[pre, post], weights=[0.5, 0.5], output="model", allow=list(allow)))
    with open_inputs(settings) as inputs:
        blocks = [Blocks(model.config, model.label) for model in inputs.models]
        assert inputs.template is not None
        agreement = agree(inputs.models, blocks, settings, inputs.template)
        names = {name: fit.names for name, fit in agreement.fits.items()}
        yield Pair(inputs.models, blocks[0], names, agreement.notes)


def merge(pre: Float[Tensor, "*shape"], post: Float[Tensor, "*shape"], ratio: float) -> Float[Tensor, "*shape"]:
    """Return a P + (1 - a) Q, as ``ama average`` computes it: in float32, or in float64 where the weights are."""
    wide = torch.promote_types(pre.dtype, torch.float32)
    return methods.linear([pre.to(wide), post.to(wide)], [ratio, 1 - ratio])


def merge_released(
    pre: Float[Tensor, "*shape"], post: Float[Tensor, "*shape"], ratio: float
) -> Float[Tensor, "*shape"]:
    """Return a P + (1 - a) Q as the release's layers compute it: bfloat16, each product and the sum rounded.

    The ratio stays float32, as on a GPU; PyTorch's CPU kernels round a scalar that stands on the left.
    """
    half, share = torch.bfloat16, torch.tensor(ratio, dtype=torch.float32)
    return pre.to(half) * share + post.to(half) * (1 - share)


def _local_entries(tensor: Tensor) -> tuple[int, Float[Tensor, " entries"]]:
    """Return the flattened entries that this process holds, and the index of the first of them."""
    if not isinstance(tensor, DTensor):
        return 0, tensor.view(-1)
    mesh, local = tensor.device_mesh, tensor.to_local()
    # FSDP2 divides rows as torch.chunk does.
    rows = min(-(-tensor.shape[0] // mesh.size()) * mesh.get_local_rank(), tensor.shape[0])
    return rows * (tensor.numel() // tensor.shape[0]), local.view(-1)
