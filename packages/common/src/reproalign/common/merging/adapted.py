"""A model with an adapter folded in while it is read."""

from __future__ import annotations

import torch
from torch import Tensor

from reproalign.common.errors import UserError
from reproalign.common.merging.adapters import Adapter
from reproalign.common.merging.checkpoint import Checkpoint
from reproalign.common.merging.headers import TensorInfo


class AdaptedCheckpoint:
    """A model with an adapter folded in, computed when it is read: nothing is rounded before the merge is."""

    def __init__(self, base: Checkpoint, adapter: Adapter, dtype: torch.dtype) -> None:
        """Fit an adapter to a model.

        Args:
            base: the model.
            adapter: the adapter; every tensor of it must have a place in the model.
            dtype: of the arithmetic.

        Raises:
            UserError: if it does not fit.
        """
        self.label = f"{base.label}+{adapter.label}" if base.label != adapter.base else adapter.label
        self.folder = base.folder
        self.config = base.config
        self.tensors: dict[str, TensorInfo] = base.tensors
        self.base, self.adapter, self.dtype = base, adapter, dtype
        if adapter.config.get("task_type") == "SEQ_CLS" and "ForSequenceClassification" not in str(
            base.config.get("architectures")
        ):
            raise UserError(
                f"'{adapter.label}' is a classifier's adapter and '{base.label}' is no classifier; save the classifier "
                "(base and head) first and give it as base"
            )
        shapes: dict[str, tuple[int, ...]] = {name: factors.shape for name, factors in adapter.modules.items()}
        shapes |= {name: tuple(tensor.shape) for name, tensor in adapter.saved.items()}
        for name, shape in shapes.items():
            if name not in base.tensors:
                raise UserError(
                    f"'{adapter.label}' does not fit '{base.label}': the model stores no tensor '{name}'"
                    + (" (its head is its embedding)" if base.config.get("tie_word_embeddings") else "")
                )
            if base.tensors[name].shape != shape:
                raise UserError(
                    f"'{adapter.label}' does not fit '{base.label}': '{name}' is {list(base.tensors[name].shape)} in "
                    f"the model and {list(shape)} in the adapter"
                )

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """See :meth:`~.checkpoint.Checkpoint.read`; adapted tensors come in the dtype of the arithmetic."""
        factors = self.adapter.modules.get(name)
        if factors is None:
            return self._plain(name, start, stop)
        width = factors.shape[1]
        first, last = start // width, -(-stop // width)
        weight = self._plain(name, first * width, last * width).view(-1, width).to(self.dtype)
        return factors.fold(weight, first).view(-1)[start - first * width : stop - first * width]

    def _plain(self, name: str, start: int, stop: int) -> Tensor:
        saved = self.adapter.saved.get(name)
        return self.base.read(name, start, stop) if saved is None else saved.reshape(-1)[start:stop].clone()
