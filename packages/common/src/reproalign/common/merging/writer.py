"""Writing sharded safetensors as a stream: headers first, then slices of tensors at their places, in any order."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from reproalign.common.errors import UserError
from reproalign.common.files import space_needed, write_json
from reproalign.common.merging.headers import DTYPE_NAMES

ALIGNMENT = 64  # bytes; where the first tensor of a file begins


@dataclass(frozen=True)
class OutputTensor:
    """A tensor to be written."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of entries."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes as written."""
        return self.dtype.itemsize * self.size


@dataclass(frozen=True)
class Shard:
    """One file of the output: its name, header and where each tensor's bytes begin."""

    file: str
    header: bytes
    offsets: Mapping[str, int]
    nbytes: int


def plan_shards(tensors: Mapping[str, OutputTensor], limit: int) -> list[Shard]:
    """Put tensors into files of at most ``limit`` bytes, in the order given; a larger tensor has a file to itself."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name, tensor in tensors.items():
        if groups[-1] and filled + tensor.nbytes > limit:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += tensor.nbytes
    names = (
        ["model.safetensors"]
        if len(groups) == 1
        else [f"model-{index:05}-of-{len(groups):05}.safetensors" for index in range(1, len(groups) + 1)]
    )
    return [_shard(file, {name: tensors[name] for name in group}) for file, group in zip(names, groups, strict=True)]


def write_index(folder: Path, shards: list[Shard], tensors: Mapping[str, OutputTensor]) -> None:
    """Write ``model.safetensors.index.json`` if there are several shards."""
    if len(shards) > 1:
        total = sum(tensor.nbytes for tensor in tensors.values())
        weight_map = {name: shard.file for shard in shards for name in shard.offsets}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(folder / "model.safetensors.index.json", index)


class ShardWriter:
    """One open output file; threads may write slices at the same time."""

    def __init__(self, folder: Path, shard: Shard) -> None:
        """Create the file at its full size.

        Raises:
            UserError: if the disk is full.
        """
        self.shard = shard
        self._path = folder / shard.file
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        with space_needed(str(folder)):
            # Claims the blocks, so that a full disk is found before the work and not after hours.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._descriptor, 0, shard.nbytes)
            self._write(shard.header, 0)

    def write(self, name: str, start: int, values: Tensor) -> None:
        """Write entries of the flattened tensor ``name``, from ``start`` on."""
        offset = self.shard.offsets[name] + start * values.dtype.itemsize
        with space_needed(str(self._path.parent)):
            self._write(values.contiguous().view(-1).view(torch.uint8).numpy().data, offset)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _write(self, values: bytes | memoryview, offset: int) -> None:
        view = memoryview(values)
        while view:
            count = os.pwrite(self._descriptor, view, offset)
            view, offset = view[count:], offset + count


def check_space(folder: Path, needed: int) -> None:
    """Refuse to begin what cannot end.

    Raises:
        UserError: if the disk of ``folder`` has less than ``needed`` bytes free.
    """
    existing = next(path for path in [folder, *folder.absolute().parents] if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(
            f"output_dir={folder}: {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free; free some, or "
            "choose another output_dir"
        )


def _shard(file: str, tensors: Mapping[str, OutputTensor]) -> Shard:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    starts = {}
    # Wide dtypes first: the format has no padding, and loaders need tensors aligned to their dtype.
    for name, tensor in sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize):
        starts[name] = begin
        header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, begin + tensor.nbytes],
        }
        begin += tensor.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    written = len(text).to_bytes(8, "little") + text
    offsets = {name: len(written) + start for name, start in starts.items()}
    return Shard(file, written, offsets, len(written) + begin)
