"""Reading checkpoints slice by slice: sharded safetensors without a copy in memory, whatever their size.

Slices are read with ``pread`` into the reader's own buffers and not through a memory map. Both stream from the page
cache, but mapped pages count as resident memory until they are dropped, a file that is cut short (or a network share
that fails) kills a process that maps it with SIGBUS where a read raises OSError, and reads are faster by what page
faults cost. The layout is the published one: eight bytes of header length, a JSON header, the tensors' bytes.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from reproalign.common.errors import UserError
from reproalign.common.merging.headers import TensorInfo, read_headers, read_json, weight_files


@runtime_checkable
class TensorSource(Protocol):
    """Anything whose tensors can be read slice by slice."""

    @property
    def label(self) -> str:
        """What messages call it."""

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """Its tensors by name."""

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Return the entries ``start`` to ``stop`` of the flattened tensor ``name``, which the caller may change."""


class Checkpoint:
    """A model folder, or one safetensors file, opened for reading.

    Attributes:
        label: what messages call it: as the user gave it.
        folder: where it is.
        tensors: what it holds.
        config: ``config.json`` as plain values; empty if there is none.
    """

    def __init__(self, label: str, folder: Path, *, allow_bin: bool = False) -> None:
        """Read the headers.

        Raises:
            UserError: if there are no weights, a shard is missing or cut short, or only pickled weights are there and
                ``allow_bin`` is false.
        """
        self.label = label
        self.folder = folder
        self.config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
        self.files = weight_files(label, folder, allow_bin)
        self._pickled = PickledFiles(self.files) if self.files[0].suffix == ".bin" else None
        self.tensors = self._pickled.tensors if self._pickled else read_headers(self.files)
        self._descriptors: dict[Path, int] = {}

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Return the entries ``start`` to ``stop`` of the flattened tensor ``name``, as stored (threads may share it).

        Raises:
            UserError: if the file ends before they do.
        """
        if self._pickled:
            return self._pickled.read(name, start, stop)
        info = self.tensors[name]
        width = info.dtype.itemsize
        made = torch.empty(stop - start, dtype=info.dtype)
        read_into(self._descriptor(info.file), made, info.offset + start * width, info.file)
        return made

    def close(self) -> None:
        """Close the files."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    def _descriptor(self, file: Path) -> int:
        if file not in self._descriptors:
            opened = os.open(file, os.O_RDONLY)
            # Two threads may open the same file at once; one descriptor stays.
            if self._descriptors.setdefault(file, opened) != opened:
                os.close(opened)
        return self._descriptors[file]


class PickledFiles:
    """``pytorch_model*.bin``, read by the weights-only loader through memory maps: nothing in them is executed."""

    def __init__(self, files: list[Path]) -> None:
        """Map the files.

        Raises:
            UserError: if one holds anything but tensors.
        """
        self._loaded: dict[str, Tensor] = {}
        self.tensors: dict[str, TensorInfo] = {}
        for file in files:
            try:
                content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
            except Exception as error:
                raise UserError(f"{file}: not loadable with weights_only=True; convert it to safetensors") from error
            for name, tensor in content.items():
                if not isinstance(tensor, Tensor):
                    raise UserError(f"{file}: '{name}' is no tensor; save the model's state_dict alone")
                self._loaded[name] = tensor
                self.tensors[name] = TensorInfo(file, tensor.dtype, tuple(tensor.shape), 0)

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """See :meth:`Checkpoint.read`."""
        return self._loaded[name].detach().reshape(-1)[start:stop].clone()


def read_into(descriptor: int, target: Tensor, offset: int, file: Path) -> None:
    """Fill a contiguous tensor with the bytes at ``offset`` of an open file.

    Raises:
        UserError: if the file ends before it is full.
    """
    view = memoryview(target.view(-1).view(torch.uint8).numpy().data)
    while view:
        count = os.preadv(descriptor, [view], offset)
        if count == 0:
            raise UserError(f"{file}: ends before its tensors do (at byte {offset}); copy or download it again")
        view, offset = view[count:], offset + count
