"""Adapters merged as adapters, in one of two spaces, which are not the same.

``factor`` averages A and B each on its own, Ā = Σ_j w_j A_j and B̄ = Σ_j w_j B_j (what DTM's release does);
``delta`` averages what they add to the weights, Σ_j w_j s_j B_j A_j, exactly, as an adapter whose rank is the sum of
the ranks, or recompressed. B̄ Ā has cross terms B_i A_j that no adapter was trained with: it means something only if all
adapters began at the same A, and the gap between the two is always reported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reproalign.common.errors import UserError
from reproalign.common.merging import methods
from reproalign.common.merging.adapters import PREFIX, Adapter, Factors
from reproalign.common.merging.headers import read_json
from reproalign.common.merging.lora_algebra import average_factors, product_norm, stack_deltas

# Beside an adapter: what it began at, so that adapters of another start are not averaged by factors.
MANIFEST = "adapter_manifest.json"
INITIAL_A = "initial_a_sha256"
# Keys of adapter_config.json that say how the adapter was trained or stored, not what it computes.
HARMLESS = {"lora_dropout", "inference_mode", "peft_version", "revision", "init_lora_weights", "auto_mapping"}
# Keys that leave out modules of the target's name.
LEFT_OUT = ("layers_to_transform", "layers_pattern", "exclude_modules")
WeightsOf = Callable[[str], Sequence[float]]


@dataclass(frozen=True)
class MergedAdapter:
    """An adapter to be written.

    Attributes:
        tensors: by their names in the file.
        config: ``adapter_config.json``.
        gap: ‖factor average - delta average‖ / ‖delta average‖ over all modules (Frobenius norms), or None where a
            factor average does not exist.
        error: ‖what was written - Σ w s B A‖ / ‖Σ w s B A‖, of the space that was chosen; None if it is no average.
        manifest: what the adapters began at, if all say the same.
        notes: for the user.
    """

    tensors: dict[str, Tensor]
    config: dict[str, Any]
    gap: float | None
    error: float | None
    manifest: dict[str, Any]
    notes: list[str]


def merge_adapters(
    adapters: Sequence[Adapter], weights_of: WeightsOf, *, space: str, rank: int | None, dtype: torch.dtype
) -> MergedAdapter:
    """Merge adapters into one.

    Args:
        adapters: of the same base.
        weights_of: weights of the adapters for a tensor of the base.
        space: ``factor`` or ``delta``.
        rank: with ``delta``, recompress to this rank (the best approximation, Eckart-Young).
        dtype: of the arithmetic.

    Raises:
        UserError: if they do not agree as the space needs it.
    """
    notes = _check_agreement(adapters, space)
    names = sorted({name for adapter in adapters for name in adapter.modules})
    columns = {name: [adapter.modules.get(name) for adapter in adapters] for name in names}
    merged: dict[str, Factors] = {}
    for name, column in columns.items():
        if space == "factor":
            merged[name] = average_factors(_complete(adapters, name), weights_of(name), dtype)
        else:
            pairs = [(part, weight) for part, weight in zip(column, weights_of(name), strict=True) if part is not None]
            merged[name] = stack_deltas(*zip(*pairs, strict=True), rank=rank, dtype=dtype)
    gap = _gap(adapters, columns, weights_of)
    error = _distance(columns, weights_of, merged)
    if space == "delta" and rank is None and error > 1e-5:
        raise RuntimeError(f"the merged adapter is off by {error:.1e}; nothing was written")
    tensors = _saved(adapters, weights_of, dtype)
    for name, factors in merged.items():
        owner = next(adapter for adapter in adapters if name in adapter.modules)
        stored = owner.modules[name]
        tensors[owner.keys[name, "a"]] = factors.a.to(stored.a.dtype).contiguous()
        tensors[owner.keys[name, "b"]] = factors.b.to(stored.b.dtype).contiguous()
    manifests = [_manifest(adapter) for adapter in adapters]
    shared = manifests[0] if all(manifest == manifests[0] for manifest in manifests) and space == "factor" else {}
    return MergedAdapter(tensors, _config(adapters, merged), gap, error, shared, notes)


def factor_delta_gap(adapters: Sequence[Adapter], weights: Sequence[float]) -> float | None:
    """Return ‖factor average - delta average‖ / ‖delta average‖; None with DoRA, or if there is no factor average.

    The numerator is DTM R5.
    """
    if any(adapter.config.get("use_dora") for adapter in adapters):
        return None
    names = sorted({name for adapter in adapters for name in adapter.modules})
    columns = {name: [adapter.modules.get(name) for adapter in adapters] for name in names}
    return _gap(adapters, columns, lambda _: weights)


def _distance(columns: dict[str, list[Factors | None]], weights_of: WeightsOf, merged: dict[str, Factors]) -> float:
    """‖merged - Σ w s B A‖ / ‖Σ w s B A‖ over all modules."""
    off = whole = 0.0
    for name, column in columns.items():
        pairs = [(part, weight) for part, weight in zip(column, weights_of(name), strict=True) if part is not None]
        left = [part.b.double() * (weight * part.scaling) for part, weight in pairs]
        right = [part.a for part, _ in pairs]
        made = merged[name]
        off += product_norm([*left, made.b.double() * -made.scaling], [*right, made.a]) ** 2
        whole += product_norm(left, right) ** 2
    return (off / whole) ** 0.5 if whole else 0.0


def _gap(adapters: Sequence[Adapter], columns: dict[str, list[Factors | None]], weights_of: WeightsOf) -> float | None:
    whole = {name: [part for part in column if part is not None] for name, column in columns.items()}
    shapes = {name: {(part.a.shape, part.scaling) for part in parts} for name, parts in whole.items()}
    if any(len(parts) < len(adapters) or len(shapes[name]) > 1 for name, parts in whole.items()):
        return None
    averages = {name: average_factors(parts, weights_of(name), torch.float64) for name, parts in whole.items()}
    return _distance(columns, weights_of, averages)


def _check_agreement(adapters: Sequence[Adapter], space: str) -> list[str]:
    first = adapters[0]
    notes = []
    for adapter in adapters:
        if adapter.config.get("use_dora"):
            raise UserError(
                f"'{adapter.label}' is a DoRA adapter, whose norms no sum of adapters keeps; set output=model to merge "
                "the models"
            )
        differing = sorted(
            key
            for key in (first.config.keys() | adapter.config.keys()) - HARMLESS - {"base_model_name_or_path"}
            if _comparable(first.config.get(key)) != _comparable(adapter.config.get(key))
        )
        needed = {"task_type", "fan_in_fan_out", "modules_to_save"}
        differing = [key for key in differing if space == "factor" or key in needed]
        if differing:
            raise UserError(
                f"'{first.label}' and '{adapter.label}' differ in {', '.join(differing)} (adapter_config.json) and "
                f"cannot be merged in {space} space" + ("; set space=delta" if space == "factor" else "")
            )
        if adapter.base != first.base:
            notes.append(f"'{first.label}' names the base {first.base}, '{adapter.label}' {adapter.base}")
    if space == "factor":
        notes += _check_start(adapters)
    return notes


def _check_start(adapters: Sequence[Adapter]) -> list[str]:
    starts = {adapter.label: _manifest(adapter).get(INITIAL_A) for adapter in adapters}
    known = {label: start for label, start in starts.items() if start}
    if len(set(known.values())) > 1:
        raise UserError(
            f"space=factor: {', '.join(known)} began at different A ({MANIFEST}), so their factors cannot be averaged; "
            "set space=delta"
        )
    missing = [label for label, start in starts.items() if not start]
    if len(adapters) == 1 or not missing:
        return []
    return [
        f"space=factor: {', '.join(missing)}: not recorded at which A the training began; it must be the same for all"
    ]


def _comparable(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, list) else value or None


def _manifest(adapter: Adapter) -> dict[str, Any]:
    path = adapter.folder / MANIFEST
    return read_json(path) if path.is_file() else {}


def _complete(adapters: Sequence[Adapter], name: str) -> list[Factors]:
    for adapter in adapters:
        if name not in adapter.modules:
            raise UserError(
                f"'{adapter.label}' has no A and B for '{name}'; its factors cannot be averaged, set space=delta"
            )
    parts = [adapter.modules[name] for adapter in adapters]
    if len({part.a.shape for part in parts}) > 1 or len({part.b.shape for part in parts}) > 1:
        raise UserError(f"'{name}': the adapters' ranks differ; their factors cannot be averaged, set space=delta")
    return parts


def _saved(adapters: Sequence[Adapter], weights_of: WeightsOf, dtype: torch.dtype) -> dict[str, Tensor]:
    made = {}
    for name in sorted({name for adapter in adapters for name in adapter.saved}):
        tensors = []
        for adapter in adapters:
            if name not in adapter.saved:
                raise UserError(f"'{adapter.label}' holds no '{name}' (modules_to_save), other adapters do")
            tensors.append(adapter.saved[name])
        if len({tensor.shape for tensor in tensors}) > 1:
            raise UserError(f"'{name}' (modules_to_save) has different shapes in the adapters")
        merged = methods.linear([tensor.to(dtype) for tensor in tensors], weights_of(name))
        made[adapters[0].keys[name, "saved"]] = merged.to(tensors[0].dtype).contiguous()
    return made


def _config(adapters: Sequence[Adapter], merged: dict[str, Factors]) -> dict[str, Any]:
    first = adapters[0]
    config = dict(first.config)
    same = all(
        name in first.modules and factors.a.shape == first.modules[name].a.shape for name, factors in merged.items()
    )
    if same:
        return config
    modules = {name.removesuffix(".weight"): factors for name, factors in merged.items()}
    ranks = {name: factors.a.shape[0] for name, factors in modules.items()}
    alphas = {name: factors.scaling * ranks[name] for name, factors in modules.items()}
    rank, alpha = max(ranks.values()), max(alphas.values())
    return config | {
        "r": rank,
        "lora_alpha": _whole(alpha),
        "use_rslora": False,
        "rank_pattern": {name: value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {name: _whole(value) for name, value in alphas.items() if value != alpha},
        "target_modules": sorted({target for adapter in adapters for target in _targets(adapter)}),
        **dict.fromkeys(LEFT_OUT),
    }


def _whole(value: float) -> float | int:
    return round(value) if abs(value - round(value)) < 1e-9 else value


def _targets(adapter: Adapter) -> list[str]:
    """Name the adapted modules one by one where the configuration has a pattern, or leaves some out."""
    targets = adapter.config.get("target_modules")
    if isinstance(targets, list) and not any(adapter.config.get(key) for key in LEFT_OUT):
        return targets
    return [key.removeprefix(PREFIX).removesuffix(".weight") for key in adapter.modules]
