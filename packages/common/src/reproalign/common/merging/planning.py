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
from reproalign.common.merging.blocks import Block, Blocks, check_selector
from reproalign.common.merging.compatibility import Agreement, agree
from reproalign.common.merging.inputs import Inputs
from reproalign.common.merging.jobs import Planner
from reproalign.common.merging.operands import CHUNK, Over
from reproalign.common.merging.selection import kth_largest_magnitudes
from reproalign.common.merging.settings import MergeSettings
from reproalign.common.merging.sparse_rules import Ties, magnitude_histograms
from reproalign.common.merging.stream import Job
from reproalign.common.merging.values import selectors


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

    settings: MergeSettings
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


def make_plan(settings: MergeSettings, inputs: Inputs) -> MergePlan:
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
    planner = Planner(settings, inputs, blocks[0].layers, agreement)
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


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Order ``layers.2`` before ``layers.10``: the order of most checkpoints, so that files are read once through."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name)]
