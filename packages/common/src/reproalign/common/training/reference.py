"""The frozen reference policy: a second copy, the policy without its adapters, or log-probs computed beforehand."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.integrations import is_deepspeed_zero3_enabled

from reproalign.common.config.model import LogprobsConfig, ModelConfig, ReferenceConfig
from reproalign.common.config.run import RunConfig
from reproalign.common.console import track
from reproalign.common.data.cache import cache_folder
from reproalign.common.errors import UserError, choose
from reproalign.common.files import atomic_path, sha256_json
from reproalign.common.logprobs.model import install_completion_logps
from reproalign.common.logprobs.statistics import HeadStates
from reproalign.common.models.identify import identify_computation
from reproalign.common.models.load import load_reference, reference_weights
from reproalign.common.text.collate import PairCollator, UnpairedCollator, forward_inputs

BLOCK_BATCHES = 64  # cached log-probs: batches per file at most, and files at least, if there are that many batches
MODES = ("auto", "copy", "adapter-disabled", "cached")


class Reference(ABC):
    """Gives log π_ref(y|x) of a batch's rows."""

    def prepare(self, accelerator: Accelerator, logprobs: LogprobsConfig) -> None:  # noqa: B027
        """Put the reference where the run computes; called once by the trainer. Not every reference needs it."""

    @abstractmethod
    def completion_logps(self, model: nn.Module, inputs: dict[str, Tensor], prefix: str = "") -> Mapping[str, Tensor]:
        """Return the log-probs of the rows whose columns begin with ``prefix``, without gradient.

        Returns:
            ``sums`` (rows,), and ``per_token`` (tokens,), rows one after the other, unless only sums are known.
        """

    def states(self, model: nn.Module, inputs: dict[str, Tensor]) -> HeadStates:
        """Return what token statistics against the reference need, of the completion tokens; without gradient.

        Raises:
            UserError: if only log-probs of the reference are known.
        """
        raise UserError(
            "this loss needs the reference's whole distribution at every token, of which cached log-probs are only one "
            "entry; set reference.mode=copy, or adapter-disabled with LoRA"
        )

    def logps(self, model: nn.Module, inputs: dict[str, Tensor]) -> Float[Tensor, " rows"]:
        """Return the log-probs summed over completion tokens (of pairs: chosen first)."""
        return self.completion_logps(model, inputs)["sums"]


class FrozenReference(Reference):
    """A frozen second model."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._autocast: Callable[[], AbstractContextManager[Any]] = nullcontext  # where preparing brings none

    def prepare(self, accelerator: Accelerator, logprobs: LogprobsConfig) -> None:
        """Shard or place the model as the policy is."""
        install_completion_logps(self.model, logprobs)
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            from trl.models.utils import prepare_deepspeed

            with _without_masters(accelerator.state.deepspeed_plugin.deepspeed_config):
                self.model = prepare_deepspeed(self.model, accelerator)
        elif accelerator.distributed_type == DistributedType.FSDP:
            from trl.models.utils import prepare_fsdp

            sharded: Any = prepare_fsdp(self.model, accelerator)
            self.model, self._autocast = sharded, accelerator.autocast
        else:
            self.model = accelerator.prepare_model(self.model, evaluation_mode=True)
        self.model.eval()

    def completion_logps(self, model: nn.Module, inputs: dict[str, Tensor], prefix: str = "") -> Mapping[str, Tensor]:
        """Run the frozen model."""
        with self._autocast():
            return _run(self.model, inputs, prefix)

    def states(self, model: nn.Module, inputs: dict[str, Tensor]) -> HeadStates:
        """Run the frozen model up to its head."""
        with self._autocast():
            return _states(self.model, inputs)


@contextmanager
def _without_masters(settings: dict[str, Any]) -> Iterator[None]:
    """Take out of DeepSpeed's settings what bf16 holds in training; without ZeRO's stages it is refused."""
    training = settings.get("bf16")
    if isinstance(training, dict):
        settings["bf16"] = {"enabled": training.get("enabled")}
    try:
        yield
    finally:
        if training is not None:
            settings["bf16"] = training


class AdapterDisabledReference(Reference):
    """The policy itself with its LoRA adapters switched off."""

    def prepare(self, accelerator: Accelerator, logprobs: LogprobsConfig) -> None:
        """Keep the accelerator, which knows how to unwrap the policy."""
        self._accelerator = accelerator

    def completion_logps(self, model: nn.Module, inputs: dict[str, Tensor], prefix: str = "") -> Mapping[str, Tensor]:
        """Run the policy without adapters."""
        with self._accelerator.unwrap_model(model).disable_adapter(), _without_dropout(model):
            return _run(model, inputs, prefix)

    def states(self, model: nn.Module, inputs: dict[str, Tensor]) -> HeadStates:
        """Run the policy without adapters up to its head."""
        with self._accelerator.unwrap_model(model).disable_adapter(), _without_dropout(model):
            return _states(model, inputs)


class CachedReference(Reference):
    """Log-probs that stand in the data: sums as ``ref_chosen_logps`` and ``ref_rejected_logps`` of pairs, values per
    token as ``ref_logps`` and ``ref_KL_logps`` of unpaired examples.
    """

    def completion_logps(self, model: nn.Module, inputs: dict[str, Tensor], prefix: str = "") -> Mapping[str, Tensor]:
        """Read the columns."""
        if "ref_chosen_logps" in inputs:
            return {"sums": torch.cat([inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]])}
        values = inputs[f"ref_{prefix}logps"]
        counts = inputs[f"{prefix}completion_mask"][:, 1:].sum(1)
        scored = torch.arange(values.shape[1], device=values.device) < counts[:, None]
        return {"sums": values.sum(1), "per_token": values[scored]}


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


def hold_reference(
    mode: str,
    config: RunConfig,
    reference: ReferenceConfig,
    rows: Dataset,
    held_out: Dataset | None,
    pad_id: int,
    *,
    start: ModelConfig | None = None,
) -> tuple[Reference, Dataset, Dataset | None]:
    """Return the reference of a run, and its data with the columns that the reference reads.

    Args:
        mode: from :func:`reference_mode`.
        config: the run.
        reference: which weights, in which batches.
        rows: tokenised pairs or unpaired examples to train on.
        held_out: tokenised pairs, if there are any.
        pad_id: of the tokenizer.
        start: where training starts; None: ``config.model``.
    """
    model = start or config.model
    if mode == "adapter-disabled":
        return AdapterDisabledReference(), rows, held_out
    if mode == "copy":
        return FrozenReference(load_reference(model, reference)), rows, held_out
    options: dict[str, Any] = {
        "load_model": lambda: load_reference(model, reference),
        "weights": identify_computation(model, *reference_weights(model, reference)),
        "cache_dir": cache_folder(config.data.cache_dir) / "reference-logps",
        "batch_size": reference.batch_size,
        "logprobs": config.logprobs,
    }

    def add(dataset: Dataset, label: str) -> Dataset:
        if "chosen_input_ids" in dataset.column_names:
            return add_cached_logps(dataset, collator=PairCollator(pad_id), label=label, **options)
        return add_cached_token_logps(dataset, collator=UnpairedCollator(pad_id), label=label, **options)

    return CachedReference(), add(rows, "training rows"), held_out and add(held_out, "held-out pairs")


def _with_pair_logps(pairs: Dataset, chosen: list[float], rejected: list[float]) -> Dataset:
    return pairs.add_column("ref_chosen_logps", chosen).add_column("ref_rejected_logps", rejected)  # type: ignore[no-any-return]


def add_cached_logps(dataset: Dataset, **options: Any) -> Dataset:
    """Return tokenised pairs with the reference's summed log-probs as columns.

    Args:
        dataset: tokenised pairs.
        **options: of :func:`compute_once`.
    """

    def measure(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        chosen, rejected = _run(model, batch)["sums"].chunk(2)
        return {"chosen": chosen, "rejected": rejected}

    columns = ["chosen_input_ids", "chosen_prompt_length", "rejected_input_ids", "rejected_prompt_length"]
    values = compute_once(dataset, columns, measure, **options)
    return _with_pair_logps(dataset, values["chosen"].tolist(), values["rejected"].tolist())


def add_cached_token_logps(dataset: Dataset, **options: Any) -> Dataset:
    """Return tokenised unpaired examples with the reference's log-probs per completion token as columns.

    Args:
        dataset: tokenised unpaired examples; mismatched ones (``KL_``) are measured where there are any.
        **options: of :func:`compute_once`.
    """
    prefixes = [prefix for prefix in ("", "KL_") if f"{prefix}input_ids" in dataset.column_names]

    def measure(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        outputs = {prefix: _run(model, batch, prefix) for prefix in prefixes}
        return {f"{prefix}{name}": outputs[prefix][name] for prefix in prefixes for name in ("per_token", "counts")}

    columns = [f"{prefix}{name}" for prefix in prefixes for name in ("input_ids", "prompt_length")]
    values = compute_once(dataset, columns, measure, **options)
    for prefix in prefixes:
        rows = values[f"{prefix}per_token"].split(values[f"{prefix}counts"].int().tolist())
        dataset = dataset.add_column(f"ref_{prefix}logps", [row.tolist() for row in rows])
    return dataset


def compute_once(
    dataset: Dataset,
    columns: list[str],
    measure: Callable[[nn.Module, dict[str, Tensor]], dict[str, Tensor]],
    *,
    load_model: Callable[[], nn.Module],
    weights: str,
    collator: Any,
    cache_dir: Path,
    batch_size: int,
    logprobs: LogprobsConfig,
    label: str,
) -> dict[str, Tensor]:
    """Measure a model on every batch of ``dataset``, in order, each process its share, and keep the values.

    They are kept in ``cache_dir`` as safetensors, a file for each block of batches, in a folder named by the token ids,
    the weights and the way of computing. A later run with the same three reads them back; an interrupted one goes on
    with the blocks that are missing, in any number of processes. All processes call this, and get all values.

    Args:
        dataset: tokenised rows.
        columns: those that say what is measured.
        measure: from the model and a batch to named vectors.
        load_model: returns the reference model; called only by a process that finds some of its share missing.
        weights: fingerprint of the reference weights.
        collator: turns rows into a batch with ``completion_mask``.
        cache_dir: where the values are kept.
        batch_size: rows per forward.
        logprobs: how log-probs are computed.
        label: what the progress bar says.

    Returns:
        The named vectors of all batches, one batch after the other, as float32 on the CPU.

    Raises:
        UserError: if something is missing and ZeRO-3 is in force.
    """
    state = PartialState()
    tokens = sha256_json([dataset[name][:] for name in columns])
    # Padding follows the batches, and rounding the padding.
    folder = cache_dir / sha256_json([tokens, weights, logprobs.implementation, batch_size])[:32]
    # Neither the batches nor the blocks depend on the number of processes.
    block_rows = batch_size * min(BLOCK_BATCHES, math.ceil(len(dataset) / batch_size / BLOCK_BATCHES))
    files = {start: folder / f"{start:09d}.safetensors" for start in range(0, len(dataset), block_rows)}

    def fill(starts: Sequence[int]) -> None:
        missing = [start for start in starts if not files[start].is_file()]
        if not missing:
            return
        if is_deepspeed_zero3_enabled():  # weights are sharded as they are read: no process could work alone
            raise UserError(
                "reference.mode=cached: log-probs cannot be computed under ZeRO-3; run the same command once with "
                "launch=ddp trainer.max_steps=1 and another output_dir, which caches them, or set reference.mode=copy"
            )
        model = load_model()
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
        model.to(device)
        install_completion_logps(model, logprobs)
        description = f"reference log-probs ({label})"
        for start in track(missing, description, shown=state.is_main_process):
            block = dataset.select(range(start, min(start + block_rows, len(dataset))))
            loader: DataLoader[Any] = DataLoader(block, batch_size=batch_size, collate_fn=collator)  # type: ignore[arg-type]
            batches = ({name: value.to(device) for name, value in batch.items()} for batch in loader)
            found = [measure(model, batch) for batch in batches]
            with atomic_path(files[start]) as temporary:
                save_file(
                    {name: torch.cat([part[name].float().cpu() for part in found]) for name in found[0]}, temporary
                )

    fill(list(files)[state.process_index :: state.num_processes])
    state.wait_for_everyone()
    with state.local_main_process_first():  # nothing is left to do, unless machines do not share the folder
        fill(list(files))
    blocks = [load_file(file) for file in files.values()]
    return {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """The reference has no dropout, though the policy whose weights it shares may train with some."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _run(model: nn.Module, inputs: dict[str, Tensor], prefix: str = "") -> Mapping[str, Tensor]:
    with torch.no_grad():
        return model(**forward_inputs(inputs, prefix), use_cache=False)  # type: ignore[no-any-return]


def _states(model: nn.Module, inputs: dict[str, Tensor]) -> HeadStates:
    with torch.no_grad():
        return model(**forward_inputs(inputs), head_states=True, use_cache=False)  # type: ignore[no-any-return]
