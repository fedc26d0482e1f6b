"""From ``reference.*`` to a run's reference policy, and to the columns of its data that such a reference reads."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from torch import Tensor, nn

from reproalign.common.config.model import LoadedModelConfig, ReferenceConfig
from reproalign.common.config.run import RunConfig
from reproalign.common.data.cache import cache_folder
from reproalign.common.errors import UserError
from reproalign.common.models.identify import identify_computation
from reproalign.common.models.load import load_reference, reference_weights
from reproalign.common.text.collate import PairCollator, UnpairedCollator
from reproalign.common.training.reference import (
    AdapterDisabledReference,
    CachedReference,
    FrozenReference,
    Reference,
    run_frozen,
)
from reproalign.common.training.reference_cache import compute_once


def reference_mode(config: RunConfig, reference: ReferenceConfig) -> str:
    """Return the mode in force: ``auto`` is ``adapter-disabled`` with LoRA and ``copy`` otherwise.

    Raises:
        UserError: if the mode does not go with the model.
    """
    mode = reference.mode
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
    start: LoadedModelConfig | None = None,
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
        **options: of :func:`~reproalign.common.training.reference_cache.compute_once`.
    """

    def measure(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        chosen, rejected = run_frozen(model, batch)["sums"].chunk(2)
        return {"chosen": chosen, "rejected": rejected}

    columns = ["chosen_input_ids", "chosen_prompt_length", "rejected_input_ids", "rejected_prompt_length"]
    values = compute_once(dataset, columns, measure, **options)
    return _with_pair_logps(dataset, values["chosen"].tolist(), values["rejected"].tolist())


def add_cached_token_logps(dataset: Dataset, **options: Any) -> Dataset:
    """Return tokenised unpaired examples with the reference's log-probs per completion token as columns.

    Args:
        dataset: tokenised unpaired examples; mismatched ones (``KL_``) are measured where there are any.
        **options: of :func:`~reproalign.common.training.reference_cache.compute_once`.
    """
    prefixes = [prefix for prefix in ("", "KL_") if f"{prefix}input_ids" in dataset.column_names]

    def measure(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        outputs = {prefix: run_frozen(model, batch, prefix) for prefix in prefixes}
        return {f"{prefix}{name}": outputs[prefix][name] for prefix in prefixes for name in ("per_token", "counts")}

    columns = [f"{prefix}{name}" for prefix in prefixes for name in ("input_ids", "prompt_length")]
    values = compute_once(dataset, columns, measure, **options)
    for prefix in prefixes:
        rows = values[f"{prefix}per_token"].split(values[f"{prefix}counts"].int().tolist())
        dataset = dataset.add_column(f"ref_{prefix}logps", [row.tolist() for row in rows])
    return dataset
