"""``merge``: combine the weights of models, or of adapters, into a folder that ``from_pretrained`` reads."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from safetensors.torch import save_file

from reproalign.common.console import note_console, result_console
from reproalign.common.files import sha256_file, sha256_json, space_needed, write_json
from reproalign.common.invocation import Invocation
from reproalign.common.merging.adapter_merge import MANIFEST, MergedAdapter, factor_delta_gap, merge_adapters
from reproalign.common.merging.adapters import CONFIG, WEIGHTS, AdaptedCheckpoint
from reproalign.common.merging.blocks import Block, Blocks, check_selector
from reproalign.common.merging.checkpoint import read_json
from reproalign.common.merging.config import MergeConfig
from reproalign.common.merging.ensemble import EnsemblePlan, plan_ensemble, verify_ensemble
from reproalign.common.merging.ensemble import write_files as write_ensemble_files
from reproalign.common.merging.inputs import Inputs, open_inputs
from reproalign.common.merging.methods import task_arithmetic_weights
from reproalign.common.merging.output import copy_files, made_by, verify, write_card, write_files
from reproalign.common.merging.planning import MergePlan, make_plan, plan_identity
from reproalign.common.merging.report import adapter_table, as_plan_file, plan_table, print_notes
from reproalign.common.merging.settings import Settings, normalized_weights, parse_size, resolve
from reproalign.common.merging.stream import JOURNAL, threads, write_model
from reproalign.common.merging.values import evaluate, selectors
from reproalign.common.merging.writer import check_space
from reproalign.common.models.identify import identify_weights
from reproalign.common.models.load import model_path
from reproalign.common.records import Run

PARTIAL = ".partial"  # where a model is written before it is whole
Made = MergePlan | MergedAdapter | EnsemblePlan
Hashes = Mapping[str, Mapping[str, Future[str]]]  # SHA-256 of the files of each input
Noting = Callable[[Mapping[str, Mapping[str, str]]], list[str]]  # from the SHA-256 of the inputs' files to notes


def merge(config: MergeConfig, invocation: Invocation) -> None:
    """Merge, and leave a run: ``run.json`` beside ``model`` or ``adapter``.

    Raises:
        UserError: for settings or models that cannot be merged, and for a full disk; nothing is left behind then.
    """
    settings = resolve(config)
    with open_inputs(settings) as inputs:
        # Whatever can be refused is refused before the folder exists.
        made = plan_merge(settings, inputs)
        with Run.open(invocation) as run:
            write_merge(run, config, inputs, made, settings=settings)


def merge_into(run: Run, config: MergeConfig) -> None:
    """Merge into the folder of an open run, for verbs that do more than merge.

    Raises:
        UserError: see :func:`merge`.
    """
    settings = resolve(config)
    with open_inputs(settings) as inputs:
        write_merge(run, config, inputs, plan_merge(settings, inputs), settings=settings)


def dry_run(config: MergeConfig, invocation: Invocation) -> None:
    """Check everything that :func:`merge` checks before it writes, and print what it would do."""
    settings = resolve(config)
    console = result_console()
    with open_inputs(settings) as inputs:
        if inputs.adapters:
            merged = _merge_adapters(settings, inputs)
            console.print(adapter_table(settings, merged))
            print_notes(console, merged.notes)
            return
        if settings.method == "ensemble":
            print_notes(console, plan_ensemble(settings).notes)
            return
        made = plan_merge(settings, inputs)
        assert isinstance(made, MergePlan)
        show_plan(config, inputs, made)


def show_plan(config: MergeConfig, inputs: Inputs, plan: MergePlan) -> None:
    """Print what a merge of models would do.

    Raises:
        UserError: if the disk has no room for it.
    """
    console = result_console()
    with threads(config.threads) as workers:
        console.print(plan_table(plan, [model.label for model in inputs.all_models], workers.count))
    print_notes(console, plan.agreement.notes)
    check_space(Path(config.output_dir), plan.output_bytes)


def plan_merge(settings: Settings, inputs: Inputs) -> Made:
    """Check that opened models can be merged as the settings say, and lay out the work; nothing is written.

    Raises:
        UserError: if they cannot.
    """
    if settings.method == "ensemble":
        return plan_ensemble(settings)
    if inputs.adapters:
        return _merge_adapters(settings, inputs)
    plan = make_plan(settings, inputs)
    plan.agreement.notes += _spaces(settings, inputs)
    return plan


def _spaces(settings: Settings, inputs: Inputs) -> list[str]:
    """Say of adapters that become a model in which space that is, and how far the other one would be."""
    adapters = [model.adapter for model in inputs.models if isinstance(model, AdaptedCheckpoint)]
    if len(adapters) < 2 or len(adapters) < len(inputs.models):
        return []
    weights = [weight for weight in settings.weights if isinstance(weight, float)]
    if settings.method != "linear" or len(weights) < len(adapters):
        weights = [1 / len(adapters)] * len(adapters)
    gap = factor_delta_gap(adapters, normalized_weights(settings, weights, "the adapters"))
    found = "they have no factor average" if gap is None else f"factor-delta gap of their average {gap:.3g}"
    return [f"space: delta (adapters folded into their base); {found}"]


def write_merge(
    run: Run,
    config: MergeConfig,
    inputs: Inputs,
    made: Made,
    *,
    settings: Settings,
    by: str | None = None,
    noting: Noting | None = None,
) -> None:
    """Write what :func:`plan_merge` laid out into the folder of an open run.

    Args:
        run: open.
        config: how it is written: shards, threads, what is verified.
        inputs: as opened.
        made: of them.
        settings: of the merge.
        by: command and method for the model's card; None: ``reproalign merge``.
        noting: of a merge of models: further notes from the SHA-256 of what was read.

    Raises:
        UserError: for a full disk.
    """
    by = by or made_by(settings.method)
    if isinstance(made, MergedAdapter):
        result_console().print(adapter_table(settings, made))
        write_adapter(run, made, inputs, plan=as_plan_file(settings), made_by=by)
    elif isinstance(made, EnsemblePlan):
        _write_ensemble(run, config, settings, made)
    else:
        with _hashing(inputs.files) as hashes:
            _write_model(run, config, made, inputs, hashes, by, noting)


def _write_ensemble(run: Run, config: MergeConfig, settings: Settings, plan: EnsemblePlan) -> None:
    print_notes(Console(stderr=True, highlight=False), plan.notes)
    folder = run.dir / PARTIAL
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    digests = {name: identify_weights(name, None) for name in plan.members}
    for name, digest in digests.items():
        run.add_fingerprint("weights", name, digest)
    with space_needed(f"output_dir={run.dir}"):
        write_ensemble_files(folder, plan)
        title = f"An ensemble of {len(plan.members)} models"
        hashes = {name: {"weights": digest} for name, digest in digests.items()}
        card = as_plan_file(settings)
        write_card(folder, title=title, made_by=made_by("ensemble"), plan=card, hashes=hashes, lines=plan.notes)
    checked = verify_ensemble(folder, config.verify)
    folder.rename(run.dir / "model")
    run.add_fingerprint("weights", "model", identify_weights(str(run.dir / "model"), None), made=True)
    run.set("verified", checked)
    run.set("notes", plan.notes)
    print(f"ensemble of {len(plan.members)} models ({checked}): {run.dir / 'model'}")


def _write_model(
    run: Run,
    config: MergeConfig,
    plan: MergePlan,
    inputs: Inputs,
    hashes: Hashes,
    by: str,
    noting: Noting | None,
) -> None:
    print_notes(Console(stderr=True, highlight=False), plan.agreement.notes)
    assert inputs.template is not None
    folder = run.dir / PARTIAL
    folder.mkdir(exist_ok=True)
    written = sum(path.stat().st_size for path in folder.iterdir())
    check_space(run.dir, plan.output_bytes - written)
    with threads(config.threads) as workers, _progress(plan.work) as advance:
        identity = plan_identity(plan, inputs)
        plan.scan(workers.over, advance)
        files = write_model(
            folder,
            plan.jobs,
            identity=identity,
            shard_bytes=parse_size(config.shard_size),
            workers=workers,
            advance=advance,
        )
    with space_needed(f"output_dir={run.dir}"):
        write_files(folder, inputs.template, inputs.all_models[0].config, plan)
    checked = verify(folder, plan, config.verify)
    digests = _record_inputs(run, hashes)
    notes = noting(digests) if noting else []
    print_notes(Console(stderr=True, highlight=False), notes)
    plan.agreement.notes += notes
    with space_needed(f"output_dir={run.dir}"):
        write_card(
            folder,
            title=f"A merge of {len(inputs.models)} models",
            made_by=by,
            plan=as_plan_file(plan.settings),
            hashes=digests,
            lines=plan.agreement.notes,
        )
    (folder / JOURNAL).unlink()
    target = run.dir / "model"
    folder.rename(target)
    run.add_fingerprint("weights", "model", sha256_json(files), made=True, files=files)
    run.set_metrics({"tensors": len(plan.jobs), "bytes": plan.output_bytes})
    run.set("verified", checked)
    run.set("notes", plan.agreement.notes)
    print(f"merged model ({decimal(plan.output_bytes)}, {len(plan.jobs)} tensors, {checked}): {target}")


def write_adapter(run: Run, merged: MergedAdapter, inputs: Inputs, *, plan: Mapping[str, Any], made_by: str) -> None:
    """Write a merged adapter into the run's folder as ``adapter``, with its record and its card.

    Args:
        run: open.
        merged: the adapter.
        inputs: what it was merged from.
        plan: the settings, for the card.
        made_by: command and method, for the card.

    Raises:
        UserError: for a full disk.
    """
    print_notes(Console(stderr=True, highlight=False), merged.notes)
    folder = run.dir / PARTIAL
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with _hashing(inputs.files) as hashes:
        digests = _record_inputs(run, hashes)
    with space_needed(f"output_dir={run.dir}"):
        save_file(merged.tensors, folder / WEIGHTS, metadata={"format": "pt"})
        write_json(folder / CONFIG, merged.config)
        if merged.manifest:
            write_json(folder / MANIFEST, merged.manifest)
        copy_files(inputs.adapters[0].folder, folder)
        title = f"A merge of {len(inputs.adapters)} adapters"
        write_card(folder, title=title, made_by=made_by, plan=plan, hashes=digests, lines=merged.notes)
    files = {WEIGHTS: sha256_file(folder / WEIGHTS)}
    folder.rename(run.dir / "adapter")
    run.add_fingerprint("weights", "adapter", sha256_json(files), made=True, files=files)
    run.set_metrics({"factor_delta_gap": merged.gap, "error": merged.error})
    run.set("notes", merged.notes)
    print(f"merged adapter: {run.dir / 'adapter'}")


def _merge_adapters(settings: Settings, inputs: Inputs) -> MergedAdapter:
    blocks = _base_blocks(settings, inputs) if any(map(selectors, settings.weights)) else None
    dtype: torch.dtype = getattr(torch, settings.wide)

    def weights_of(name: str) -> tuple[float, ...]:
        block = Block("other") if blocks is None else blocks.block(name)
        layers = 0 if blocks is None else blocks.layers
        given = [evaluate(setting, name, block, layers, "weights") for setting in settings.weights]
        weights = normalized_weights(settings, given, name)
        if settings.method == "task_arithmetic":  # what is added to the base is all that an adapter holds
            return task_arithmetic_weights(weights, settings.scale)[1:]
        return weights

    return merge_adapters(inputs.adapters, weights_of, space=settings.space or "delta", rank=settings.rank, dtype=dtype)


def _base_blocks(settings: Settings, inputs: Inputs) -> Blocks:
    """Read the blocks off the base that the adapters name, which only ``parts`` needs."""
    name = settings.base or inputs.adapters[0].base
    blocks = Blocks(read_json(Path(model_path(name, "base")) / "config.json"), name)
    placed = [(tensor, blocks.block(tensor)) for adapter in inputs.adapters for tensor in adapter.modules]
    for selector in {selector for setting in settings.weights for selector in selectors(setting)}:
        check_selector(selector, blocks.layers, placed)
    return blocks


@contextmanager
def _hashing(inputs: Mapping[str, list[Path]]) -> Iterator[Hashes]:
    """Take the SHA-256 of every input while the merge runs: the same bytes come from the page cache to both."""
    pool = ThreadPoolExecutor(max(len(inputs), 1), "hash")
    try:
        # File by file, so that a merge that fails waits for those under way and not for all that are left.
        yield {label: {path.name: pool.submit(sha256_file, path) for path in files} for label, files in inputs.items()}
    finally:
        pool.shutdown(cancel_futures=True)


def _record_inputs(run: Run, hashes: Hashes) -> dict[str, dict[str, str]]:
    digests = {label: {name: future.result() for name, future in files.items()} for label, files in hashes.items()}
    for label, files in digests.items():
        run.add_fingerprint("weights", label, sha256_json(files), files=files)
    return digests


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    columns = (TextColumn("merging"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=note_console()) as progress:
        task = progress.add_task("merging", total=total)
        yield lambda count: progress.advance(task, count)
        progress.update(task, completed=total)
