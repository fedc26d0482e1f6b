"""From settings and opened models to jobs: for every tensor of the output its rule, its numbers and its sources."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import torch

from reproalign.common.errors import UserError
from reproalign.common.files import sha256_json
from reproalign.common.merging import methods
from reproalign.common.merging.adapters import AdaptedCheckpoint
from reproalign.common.merging.blocks import Block, Blocks, check_selector
from reproalign.common.merging.checkpoint import Source
from reproalign.common.merging.compatibility import Agreement, Fit, agree
from reproalign.common.merging.inputs import Inputs
from reproalign.common.merging.rules import (
    CHUNK,
    Dare,
    Fisher,
    Linear,
    Operands,
    Over,
    RegMean,
    Rule,
    Same,
    Slerp,
    Ties,
    magnitude_histograms,
)
from reproalign.common.merging.selection import kth_largest_magnitudes
from reproalign.common.merging.settings import METHODS, Settings, normalized_weights
from reproalign.common.merging.stream import Job
from reproalign.common.merging.values import evaluate, selectors
from reproalign.common.merging.writer import OutputTensor

Extra = tuple[tuple[Source, str], ...]  # statistics that a rule reads beside the models


@dataclass
class MergePlan:
    """All that will be done.

    Attributes:
        settings: of the merge.
        jobs: by tensor name, in the order of writing.
        blocks: block of each tensor.
        numbers: what the rule of each tensor takes, for tables and the model card.
        agreement: what the models have in common.
    """

    settings: Settings
    jobs: dict[str, Job]
    blocks: dict[str, Block]
    numbers: dict[str, str]
    agreement: Agreement

    @property
    def output_bytes(self) -> int:
        """Size of the output."""
        return sum(job.output.nbytes for job in self.jobs.values())

    @property
    def work(self) -> int:
        """Bytes that are read and written, over all passes."""
        return sum(job.work for job in self.jobs.values()) + self.scan_work

    @property
    def scan_work(self) -> int:
        """Bytes that are read to find thresholds for the whole model, twice in float32, four times in float64."""
        if not self._scans():
            return 0
        return sum(
            job.operands.dtype.itemsize // 2 * (job.work - job.output.nbytes) for job in self._trimmed().values()
        )

    def memory(self, threads: int) -> int:
        """Bytes of tensors in memory at once, at most: slices, or for RegMean the matrices of one layer."""
        most = 0
        for job in self.jobs.values():
            operands = job.operands
            count = len(operands.sources) + 3
            if job.rule.whole:
                most = max(most, 2 * operands.dtype.itemsize * sum(operands.info(i).size for i in range(count - 3)))
            else:
                most = max(most, threads * count * min(CHUNK, operands.size) * operands.dtype.itemsize)
        return most

    def scan(self, over: Over, advance: Callable[[int], None]) -> None:
        """Find the magnitudes that TIES keeps in the whole model, if it trims so (arXiv 2306.01708, Section 4.2)."""
        trimmed = self._trimmed()
        if not self._scans():
            return
        dtype = reduce(torch.promote_types, (job.operands.dtype for job in trimmed.values()))
        rule = next(job.rule for job in trimmed.values())
        assert isinstance(rule, Ties)
        total = sum(job.operands.size for job in trimmed.values())
        operands = [replace(job.operands, dtype=dtype) for job in trimmed.values()]

        def histograms(prefixes: list[int | None], done: int) -> Iterator[torch.Tensor]:
            for entry, job in zip(operands, trimmed.values(), strict=True):
                yield from magnitude_histograms(entry, prefixes, done, over)
                advance(job.work - job.output.nbytes)

        counts = [round(density * total) for density in rule.densities]
        thresholds = tuple(kth_largest_magnitudes(counts, dtype, histograms))
        for name, job in trimmed.items():
            assert isinstance(job.rule, Ties)
            self.jobs[name] = replace(job, rule=replace(job.rule, thresholds=thresholds))

    def _trimmed(self) -> dict[str, Job]:
        return {name: job for name, job in self.jobs.items() if isinstance(job.rule, Ties)}

    def _scans(self) -> bool:
        return self.settings.trim_scope == "model" and bool(self._trimmed())


def make_plan(settings: Settings, inputs: Inputs) -> MergePlan:
    """Check that the models fit together and lay out the work; nothing is written.

    Raises:
        UserError: see :func:`~.compatibility.agree`; also for parts that name no block.
    """
    models = inputs.all_models
    assert inputs.template is not None
    built: dict[Path, Blocks] = {}
    for model in models:
        if model.folder not in built:
            built[model.folder] = Blocks(model.config, model.label)
    blocks = [built[model.folder] for model in models]
    agreement = agree(models, blocks, settings, inputs.template)
    placed = {name: blocks[0].block(name) for name in sorted(agreement.fits, key=_natural)}
    for setting in (*settings.weights, *settings.densities, settings.t):
        for selector in selectors(setting):
            check_selector(selector, blocks[0].layers, placed.items())
    if settings.layers not in (None, blocks[0].layers):
        raise UserError(
            f"slices: they hold {settings.layers} of the {blocks[0].layers} layers of '{models[0].label}'; only plans "
            "that leave every layer in its place are merged here"
        )
    planner = _Planner(settings, inputs, blocks[0].layers, agreement)
    jobs, numbers = {}, {}
    for name, block in placed.items():
        jobs[name], numbers[name] = planner.job(name, block)
    known = blocks[0].model.state_dict().keys()
    for entry in inputs.statistics:
        for unused in sorted(entry.tensors.keys() - jobs.keys()):
            if unused not in known:
                raise UserError(f"statistics: '{entry.label}': '{unused}' is no tensor of the models")
            agreement.notes.append(
                f"statistics: '{entry.label}': '{unused}' is not used, the models store no such tensor"
            )
    return MergePlan(settings, jobs, placed, numbers, agreement)


def plan_identity(plan: MergePlan, inputs: Inputs) -> str:
    """Return what a partly written output belongs to: the settings, and sizes and times of all files that count."""
    weights = {path for files in inputs.files.values() for path in files}
    # adapter_config.json scales what an adapter's weights add.
    configs = {path.parent / name for path in weights for name in ("config.json", "adapter_config.json")}
    files = sorted(path for path in weights | configs if path.is_file())
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    layout = [(name, repr(job.rule), str(job.output)) for name, job in plan.jobs.items()]
    return sha256_json([repr(plan.settings), stats, layout])


class _Planner:
    def __init__(self, settings: Settings, inputs: Inputs, layers: int, agreement: Agreement) -> None:
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


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Order ``layers.2`` before ``layers.10``: the order of most checkpoints, so that files are read once through."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name)]
