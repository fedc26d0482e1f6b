"""The work for each tensor of the output: its rule, its numbers and its sources."""

from __future__ import annotations

from functools import reduce

import torch

from reproalign.common.errors import UserError
from reproalign.common.merging import methods
from reproalign.common.merging.adapted import AdaptedCheckpoint
from reproalign.common.merging.blocks import Block
from reproalign.common.merging.checkpoint import TensorSource
from reproalign.common.merging.compatibility import Agreement, Fit
from reproalign.common.merging.inputs import Inputs
from reproalign.common.merging.operands import Operands, Rule
from reproalign.common.merging.rules import Fisher, Linear, RegMean, Same, Slerp
from reproalign.common.merging.settings import METHODS, MergeSettings, normalized_weights
from reproalign.common.merging.sparse_rules import Dare, Ties
from reproalign.common.merging.stream import Job
from reproalign.common.merging.values import evaluate, selectors
from reproalign.common.merging.writer import OutputTensor

Extra = tuple[tuple[TensorSource, str], ...]  # statistics that a rule reads beside the models


class Planner:
    """Makes the job of each tensor, from what the models have in common."""

    def __init__(self, settings: MergeSettings, inputs: Inputs, layers: int, agreement: Agreement) -> None:
        self.settings = settings
        self.inputs = inputs
        self.layers = layers
        self.agreement = agreement

    def job(self, name: str, block: Block) -> tuple[Job, str]:
        """Return the work for a tensor, and the numbers of its rule as text."""
        fit = self.agreement.fits[name]
        sources = tuple(zip(self.inputs.all_models, fit.names, strict=True))
        infos = [source.tensors[place] for source, place in sources]
        columns = infos[0].size // max(infos[0].shape[0], 1) if infos[0].shape else 1
        stored = infos[0].dtype
        if not all(info.dtype.is_floating_point for info in infos):
            operands = Operands(name, sources, infos[0].size, stored)
            return Job(OutputTensor(stored, fit.shape), operands, Same()), "same in all"
        if any(info.dtype.itemsize < 2 for info in infos):
            raise UserError(
                f"tensor '{name}' is stored in {stored}, with scales of its own; dequantise the models first"
            )
        wide: torch.dtype = getattr(torch, self.settings.wide)
        dtype = reduce(torch.promote_types, (info.dtype for info in infos), wide)
        if self.settings.accumulate == "output":
            dtype = self._dtype(stored)
        size = infos[0].size if fit.common is None else fit.common * columns
        rule, extra, numbers = self._rule(name, block, fit)
        output = OutputTensor(self._dtype(stored), fit.shape)
        return Job(output, Operands(name, (*sources, *extra), size, dtype), rule, fit.rest), numbers

    def _rule(self, name: str, block: Block, fit: Fit) -> tuple[Rule, Extra, str]:
        settings = self.settings
        if settings.method == "slerp":
            t = evaluate(settings.t, name, block, self.layers, "t")
            return Slerp(t), (), f"t {t:g}"
        given = [evaluate(setting, name, block, self.layers, "weights") for setting in settings.weights]
        weights = normalized_weights(settings, given, name)
        numbers = _listed(weights)
        if settings.method == "linear":
            return Linear(weights, rounded=settings.accumulate == "output"), (), numbers
        if METHODS[settings.method].base:
            return self._task_rule(name, block, weights)
        extra = tuple((entry, name) for entry in self.inputs.statistics if name in entry.tensors)
        alone = sum(weight != 0 for weight in weights) == 1  # then the average is that model, bit for bit
        if settings.method == "fisher":
            if not extra:
                return Same(self._unmeasured(name)), (), "not measured, same in all"
            self._check_statistics(name, fit)
            return (Linear(weights), (), numbers) if alone else (Fisher(weights, settings.floor), extra, numbers)
        if not extra:
            return Linear(weights), (), f"{_listed(weights)}, average"
        transposed = self._check_grams(name, fit)
        if alone:
            return Linear(weights), (), numbers
        return RegMean(weights, settings.off_diagonal, transposed), extra, numbers

    def _task_rule(self, name: str, block: Block, weights: tuple[float, ...]) -> tuple[Rule, Extra, str]:
        settings = self.settings
        numbers = f"{_listed(weights)}, λ {settings.scale:g}"
        if settings.method == "task_arithmetic":
            return Linear(methods.task_arithmetic_weights(weights, settings.scale)), (), numbers
        densities = tuple(evaluate(entry, name, block, self.layers, "density") for entry in settings.densities)
        numbers += f", density {_listed(densities)}"
        if settings.method == "ties":
            if settings.trim_scope == "model" and selectors(settings.densities[0]):
                raise UserError("parts: density has no meaning with trim_scope=model, which trims all tensors at once")
            thresholds = () if settings.trim_scope == "model" else None
            return Ties(weights, densities, settings.scale, settings.normalize, thresholds), (), numbers
        if settings.method == "dare_linear" and set(densities) == {1.0}:
            return Linear(methods.task_arithmetic_weights(weights, settings.scale)), (), numbers
        elect = settings.method == "dare_ties"
        return Dare(weights, densities, settings.scale, settings.seed, elect, settings.normalize), (), numbers

    def _unmeasured(self, name: str) -> str:
        """Return what to say if a tensor without Fisher information is not the same in all models after all."""
        reason = f"no statistics hold its Fisher information; measure '{name}' too"
        for model in self.inputs.models:
            adapter = model.adapter if isinstance(model, AdaptedCheckpoint) else None
            if adapter and (name in adapter.modules or name in adapter.saved):
                raise UserError(f"tensor '{name}' is changed by '{model.label}' and {reason}")
        return reason

    def _check_statistics(self, name: str, fit: Fit) -> None:
        for entry in self.inputs.statistics:
            if name not in entry.tensors:
                raise UserError(f"statistics: '{entry.label}' holds no Fisher information for tensor '{name}'")
            if entry.tensors[name].shape != fit.shape:
                found = list(entry.tensors[name].shape)
                raise UserError(f"statistics: '{entry.label}': '{name}' is {found}, in the model {list(fit.shape)}")

    def _check_grams(self, name: str, fit: Fit) -> bool:
        """Check the Gram matrices of a layer; say whether the layer is stored transposed."""
        lacking = [entry.label for entry in self.inputs.statistics if name not in entry.tensors]
        if lacking:
            raise UserError(f"statistics: '{lacking[0]}' holds no Gram matrix for tensor '{name}', others do")
        shapes = {entry.tensors[name].shape for entry in self.inputs.statistics}
        side = next(iter(shapes))[0] if len(shapes) == 1 else 0
        if len(fit.shape) != 2 or shapes != {(side, side)} or side not in fit.shape or fit.common is not None:
            raise UserError(
                f"statistics: the Gram matrices of '{name}' ({sorted(shapes)}) do not fit its shape {list(fit.shape)}"
            )
        return fit.shape[1] != side

    def _dtype(self, stored: torch.dtype) -> torch.dtype:
        return stored if self.settings.dtype == "auto" else getattr(torch, self.settings.dtype)


def _listed(numbers: tuple[float, ...]) -> str:
    return ", ".join(f"{number:.4g}" for number in numbers)
