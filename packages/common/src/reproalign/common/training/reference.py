"""The frozen reference policy: a second copy, the policy without its adapters, or log-probs computed beforehand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from datasets import Dataset
from jaxtyping import Float
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from reproalign.common.config import LogprobsConfig, ReferenceConfig, RunConfig
from reproalign.common.errors import UserError, choose
from reproalign.common.files import atomic_path, sha256_json
from reproalign.common.logprobs.model import install_completion_logps

MODES = ("auto", "copy", "adapter-disabled", "cached")


class Reference(ABC):
    """Gives log π_ref(y|x), summed over completion tokens, of a batch's rows."""

    def prepare(self, accelerator: Accelerator, logprobs: LogprobsConfig) -> None:  # noqa: B027
        """Put the reference where the run computes; called once by the trainer. Not every reference needs it."""

    @abstractmethod
    def logps(self, model: nn.Module, inputs: dict[str, Tensor]) -> Float[Tensor, " rows"]:
        """Return the summed log-probs of the rows (chosen first), without gradient."""


class FrozenReference(Reference):
    """A frozen second model."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def prepare(self, accelerator: Accelerator, logprobs: LogprobsConfig) -> None:
        """Shard or place the model as the policy is."""
        install_completion_logps(self.model, implementation=logprobs.implementation, chunk_size=logprobs.chunk_size)
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            from trl.models.utils import prepare_deepspeed

            self.model = prepare_deepspeed(self.model, accelerator)
        elif accelerator.distributed_type == DistributedType.FSDP:
            from trl.models.utils import prepare_fsdp

            sharded: Any = prepare_fsdp(self.model, accelerator)
            self.model = sharded
        else:
            self.model = accelerator.prepare_model(self.model, evaluation_mode=True)
        self.model.eval()

    def logps(self, model: nn.Module, inputs: dict[str, Tensor]) -> Float[Tensor, " rows"]:
        """Run the frozen model."""
        return _sums(self.model, inputs)


class AdapterDisabledReference(Reference):
    """The policy itself with its LoRA adapters switched off."""

    def prepare(self, accelerator: Accelerator, logprobs: LogprobsConfig) -> None:
        """Keep the accelerator, which knows how to unwrap the policy."""
        self._accelerator = accelerator

    def logps(self, model: nn.Module, inputs: dict[str, Tensor]) -> Float[Tensor, " rows"]:
        """Run the policy without adapters."""
        with self._accelerator.unwrap_model(model).disable_adapter():
            return _sums(model, inputs)


class CachedReference(Reference):
    """Log-probs that stand in the data as ``ref_chosen_logps`` and ``ref_rejected_logps``."""

    def logps(self, model: nn.Module, inputs: dict[str, Tensor]) -> Float[Tensor, " rows"]:
        """Read the columns."""
        return torch.cat([inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]])


def reference_mode(config: RunConfig, reference: ReferenceConfig) -> str:
    """Return the mode in force: ``auto`` is ``adapter-disabled`` with LoRA and ``copy`` otherwise.

    Raises:
        UserError: if the mode does not go with the model.
    """
    mode = choose("reference.mode", reference.mode, MODES)
    adapters = config.model.lora.enabled
    if mode == "adapter-disabled" and not adapters:
        raise UserError(
            "reference.mode=adapter-disabled needs adapters; set model.lora.enabled=true or reference.mode=copy"
        )
    if mode == "adapter-disabled" and reference.model:
        raise UserError("reference.model names other weights; use reference.mode=copy or cached with it")
    if mode == "auto":
        return "adapter-disabled" if adapters and not reference.model else "copy"
    return mode


def add_cached_logps(
    dataset: Dataset,
    *,
    load_model: Any,
    weights: str,
    collator: Any,
    cache_dir: Path,
    batch_size: int,
    logprobs: LogprobsConfig,
    label: str,
) -> Dataset:
    """Return ``dataset`` with the reference's summed log-probs as columns, computing them once.

    The values are kept in ``cache_dir`` as safetensors under a key made of the token ids, the weights and the way of
    computing, so that any later run with the same three reads them back.

    Args:
        dataset: tokenised pairs.
        load_model: returns the reference model; called only when nothing is cached.
        weights: fingerprint of the reference weights.
        collator: turns rows into a batch with ``completion_mask``.
        cache_dir: where the values are kept.
        batch_size: pairs per forward.
        logprobs: how log-probs are computed.
        label: what the progress bar says.
    """
    columns = ("chosen_input_ids", "chosen_prompt_length", "rejected_input_ids", "rejected_prompt_length")
    tokens = sha256_json([dataset[name][:] for name in columns])
    path = cache_dir / f"{sha256_json([tokens, weights, logprobs.implementation])[:32]}.safetensors"
    if not path.is_file():
        model = load_model()
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
        model.to(device)
        install_completion_logps(model, implementation=logprobs.implementation, chunk_size=logprobs.chunk_size)
        loader: DataLoader[Any] = DataLoader(dataset, batch_size=batch_size, collate_fn=collator)  # type: ignore[arg-type]
        chosen, rejected = [], []
        for batch in track(loader, description=f"reference log-probs ({label})", total=len(loader)):
            sums = _sums(model, {name: value.to(device) for name, value in batch.items()}).float().cpu()
            first, second = sums.chunk(2)
            chosen.append(first)
            rejected.append(second)
        with atomic_path(path) as temporary:
            save_file({"chosen": torch.cat(chosen), "rejected": torch.cat(rejected)}, temporary)
    values = load_file(path)
    return dataset.add_column("ref_chosen_logps", values["chosen"].tolist()).add_column(  # type: ignore[no-any-return]
        "ref_rejected_logps", values["rejected"].tolist()
    )


def _sums(model: nn.Module, inputs: dict[str, Tensor]) -> Float[Tensor, " rows"]:
    with torch.no_grad():
        output = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            completion_mask=inputs["completion_mask"],
            use_cache=False,
        )
    return output["sums"]  # type: ignore[no-any-return]
