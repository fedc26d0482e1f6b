"""Reading checkpoints slice by slice: sharded safetensors without a copy in memory, whatever their size.

Slices are read with ``pread`` into the reader's own buffers and not through a memory map. Both stream from the page
cache, but mapped pages count as resident memory until they are dropped, a file that is cut short (or a network share
that fails) kills a process that maps it with SIGBUS where a read raises OSError, and reads are faster by what page
faults cost. The layout is the published one: eight bytes of header length, a JSON header, the tensors' bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from reproalign.common.errors import UserError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
HEADER_LIMIT = 100_000_000  # bytes, as in the reference implementation


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies and what it is.

    Attributes:
        file: that holds it.
        dtype: as stored.
        shape: as stored.
        offset: of its first byte in the file.
    """

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Number of entries."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes as stored."""
        return self.size * self.dtype.itemsize


@runtime_checkable
class Source(Protocol):
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
        self.files = _weight_files(label, folder, allow_bin)
        self._pickled = PickledFiles(self.files) if self.files[0].suffix == ".bin" else None
        self.tensors = self._pickled.tensors if self._pickled else _read_headers(self.files)
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


def _weight_files(label: str, folder: Path, allow_bin: bool) -> list[Path]:
    if folder.is_file():
        return [folder]
    for index, plain, pattern in (
        ("model.safetensors.index.json", "model.safetensors", "*.safetensors"),
        ("pytorch_model.bin.index.json", "pytorch_model.bin", "pytorch_model*.bin"),
    ):
        found = sorted(path for path in folder.glob(pattern) if not path.name.startswith("adapter_model"))
        if (folder / plain).is_file():
            found = [folder / plain]  # goes before an index for from_pretrained too
        elif (folder / index).is_file():
            found = sorted({folder / name for name in read_json(folder / index)["weight_map"].values()})
            missing = [path for path in found if not path.is_file()]
            if missing:
                raise UserError(f"{missing[0]}: missing, but {index} lists it; copy or download '{label}' again")
        if found and pattern.endswith(".bin") and not allow_bin:
            raise UserError(
                f"'{label}' holds only pickled weights ({found[0].name}); add allow=[bin] to read them with "
                "torch.load(weights_only=True), or convert them to safetensors"
            )
        if found:
            return found
    raise UserError(f"'{label}' holds no weights (no *.safetensors in {folder})")


def _read_headers(files: Iterable[Path]) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        for name, info in read_header(file).items():
            if name in tensors:
                raise UserError(f"{file}: tensor '{name}' is also in {tensors[name].file.name}; remove one of the two")
            tensors[name] = info
    return tensors


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Read the header of a safetensors file.

    Raises:
        UserError: if it is not one, or the file is shorter than its header says.
    """
    broken = f"{file}: not a safetensors file, or cut short; copy or download it again"
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, HEADER_LIMIT):
            raise UserError(broken)
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise UserError(broken) from error
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise UserError(f"{file}: tensor '{name}' has the dtype {entry['dtype']}, which cannot be merged")
        start, stop = entry["data_offsets"]
        info = TensorInfo(file, DTYPES[entry["dtype"]], tuple(entry["shape"]), 8 + length + start)
        if info.nbytes != stop - start or 8 + length + stop > size:
            raise UserError(broken)
        tensors[name] = info
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UserError: if there is none.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: missing or unreadable") from error
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: a JSON object is expected")
    return value
