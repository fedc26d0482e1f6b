"""LoRA adapters as PEFT saves them: read whole and checked, and folded into weights slice by slice."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from reproalign.common.errors import UserError
from reproalign.common.merging.headers import read_json

PREFIX = "base_model.model."
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# What PEFT can add to LoRA and this module does not compute: key of the configuration -> what it is.
UNSUPPORTED = {
    "lora_bias": "biases in B",
    "layer_replication": "replicated layers",
    "trainable_token_indices": "trained rows of the embedding",
    "target_parameters": "adapters on bare parameters",
    "alora_invocation_tokens": "activated LoRA, which depends on the input",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
}


@dataclass(frozen=True)
class Factors:
    """What LoRA adds to one matrix: ΔW = s B A (arXiv 2106.09685, Eq. 3).

    Attributes:
        a: A.
        b: B.
        scaling: s, alpha / r, or alpha / √r with rsLoRA (arXiv 2312.03732, Eq. 3).
        magnitude: m of DoRA (arXiv 2402.09353, Eq. 5), one for each row; None without.
        transposed: the weight is stored as (columns, rows), as GPT-2's and embeddings are.
    """

    a: Float[Tensor, "rank columns"]
    b: Float[Tensor, "rows rank"]
    scaling: float
    magnitude: Float[Tensor, " rows"] | None
    transposed: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the stored weight."""
        rows, columns = self.b.shape[0], self.a.shape[1]
        return (columns, rows) if self.transposed else (rows, columns)

    def fold(self, weight: Float[Tensor, "some columns"], first: int) -> Float[Tensor, "some columns"]:
        """Return rows of W + s B A, or with DoRA of m (W + s B A) / ‖W + s B A‖ (norms of rows).

        Args:
            weight: consecutive rows of the stored weight, in the dtype of the arithmetic.
            first: index of the first of them.
        """
        rows = slice(first, first + len(weight))
        left, right = (self.a.mT, self.b.mT) if self.transposed else (self.b, self.a)
        folded = torch.addmm(weight, left[rows].to(weight.dtype), right.to(weight.dtype), alpha=self.scaling)
        if self.magnitude is None:
            return folded
        norms = torch.linalg.vector_norm(folded, dim=1, keepdim=True)
        scaled: Tensor = folded * (self.magnitude[rows, None].to(weight.dtype) / norms)
        return scaled


class Adapter:
    """A PEFT LoRA adapter in memory.

    Attributes:
        label: what messages call it.
        folder: where it is.
        file: that holds its tensors.
        config: ``adapter_config.json`` as plain values.
        modules: low-rank changes by name of the base's tensor.
        saved: tensors that replace the base's (``modules_to_save``), by name.
        keys: name in the adapter's file of every tensor, by (tensor of the base, part).
    """

    def __init__(self, label: str, folder: Path, *, allow_bin: bool = False) -> None:
        """Read and check an adapter.

        Raises:
            UserError: if it is no LoRA adapter, holds what is not understood, or changes nothing.
        """
        self.label = label
        self.folder = folder
        self.config = read_json(folder / CONFIG)
        if self.config.get("peft_type") != "LORA":
            raise UserError(
                f"'{label}': a {self.config.get('peft_type')} adapter; only LoRA (also rsLoRA, DoRA) can be merged"
            )
        for key, what in UNSUPPORTED.items():
            if self.config.get(key):
                raise UserError(f"'{label}': {key} ({what}) cannot be merged")
        self.modules: dict[str, Factors] = {}
        self.saved: dict[str, Tensor] = {}
        self.keys: dict[tuple[str, str], str] = {}
        self.file = _weight_file(label, folder, allow_bin)
        self._sort(load_tensors(self.file))
        if not self.saved and not any(
            factors.scaling and bool(factors.b.any()) and bool(factors.a.any()) for factors in self.modules.values()
        ):
            raise UserError(f"'{label}': the adapter changes nothing (B A = 0 in every module); was it trained?")

    @property
    def base(self) -> str:
        """Name of the base model, as the adapter gives it."""
        return str(self.config.get("base_model_name_or_path") or "")

    def _sort(self, tensors: dict[str, Tensor]) -> None:
        parts: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            name = key.removeprefix(PREFIX)
            for marker, part in (
                (".lora_A.weight", "a"),
                (".lora_B.weight", "b"),
                (".lora_embedding_A", "embedding_a"),
                (".lora_embedding_B", "embedding_b"),
                (".lora_magnitude_vector.weight", "magnitude"),
                (".lora_magnitude_vector", "magnitude"),
            ):
                if name.endswith(marker):
                    module = name.removesuffix(marker)
                    parts.setdefault(module, {})[part] = tensor
                    self.keys[f"{module}.weight", part.removeprefix("embedding_")] = key
                    break
            else:
                if "lora_" in name:
                    raise UserError(f"'{self.label}': tensor '{key}' is not understood; every tensor must be used")
                # PEFT saves an adapted embedding along, under the name it has inside the adapter's module.
                name = name.replace(".base_layer.", ".")
                self.saved[name] = tensor
                self.keys[name, "saved"] = key
        for module, found in parts.items():
            self.modules[f"{module}.weight"] = self._factors(module, found)

    def _factors(self, module: str, found: dict[str, Tensor]) -> Factors:
        embedding = "embedding_a" in found
        a, b = found.get("embedding_a", found.get("a")), found.get("embedding_b", found.get("b"))
        if a is None or b is None or a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1]:
            raise UserError(f"'{self.label}': module '{module}' has no matching matrices A (r, in) and B (out, r)")
        rank = a.shape[0]
        pattern: dict[str, float] = self.config.get("alpha_pattern") or {}
        alpha = pattern.get(get_pattern_key(list(pattern), module), self.config["lora_alpha"])
        transposed = embedding or bool(self.config.get("fan_in_fan_out"))
        magnitude = found.get("magnitude")
        if bool(self.config.get("use_dora")) != (magnitude is not None) or (magnitude is not None and transposed):
            raise UserError(f"'{self.label}': module '{module}': this form of DoRA cannot be merged")
        return Factors(
            a=a.float(),
            b=b.float(),
            scaling=alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank),
            magnitude=None if magnitude is None else magnitude.float().flatten(),
            transposed=transposed,
        )


def _weight_file(label: str, folder: Path, allow_bin: bool) -> Path:
    path, pickled = folder / WEIGHTS, folder / "adapter_model.bin"
    if path.is_file() or not pickled.is_file():
        return path
    if not allow_bin:
        raise UserError(
            f"'{label}' holds only pickled weights ({pickled.name}); add allow=[bin] to read them with "
            "torch.load(weights_only=True)"
        )
    return pickled


def load_tensors(file: Path) -> dict[str, Tensor]:
    """Read the tensors of an adapter as they are stored; pickled ones with ``weights_only=True``.

    Raises:
        UserError: if the file cannot be read.
    """
    if file.suffix == ".bin":
        try:
            loaded: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            raise UserError(f"{file}: not loadable with weights_only=True") from error
        return loaded
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: not a readable safetensors file ({error})") from error
