"""The files of a checkpoint: which they are, and what their safetensors headers say."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

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


def weight_files(label: str, folder: Path, allow_bin: bool) -> list[Path]:
    """Return the files that hold a model's weights: safetensors, or pickled ones if they are allowed.

    Raises:
        UserError: if there are none, one that an index lists is missing, or they are pickled and not allowed.
    """
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


def read_headers(files: Iterable[Path]) -> dict[str, TensorInfo]:
    """Read the headers of several safetensors files: their tensors by name.

    Raises:
        UserError: for a file that is broken, or a tensor that is in two.
    """
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
