"""What a merge made (a model, an ensemble, an adapter), written into the folder of an open run and recorded."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.filesize import decimal
from safetensors.torch import save_file

from reproalign.common.console import counting, result_console, warning_console
from reproalign.common.files import put_in_place, sha256_file, sha256_json, space_needed, write_json
from reproalign.common.manifests import digest_of
from reproalign.common.merging.adapter_merge import MANIFEST, MergedAdapter
from reproalign.common.merging.adapters import CONFIG, WEIGHTS
from reproalign.common.merging.config import MergeConfig
from reproalign.common.merging.ensemble import EnsemblePlan, verify_ensemble
from reproalign.common.merging.ensemble import write_files as write_ensemble_files
from reproalign.common.merging.inputs import Inputs
from reproalign.common.merging.outcome import Made
from reproalign.common.merging.output import copy_files, made_by, verify, write_files
from reproalign.common.merging.planning import MergePlan, plan_identity
from reproalign.common.merging.report import adapter_table, as_plan_file, print_notes
from reproalign.common.merging.settings import MergeSettings, parse_size
from reproalign.common.merging.stream import JOURNAL, threads, write_model
from reproalign.common.merging.writer import check_space
from reproalign.common.models.identify import identify_weights
from reproalign.common.records import Run
from reproalign.common.records.handed_on import as_written

PARTIAL = ".partial"  # where a model is written before it is whole
Hashes = Mapping[str, Mapping[str, Future[str]]]  # SHA-256 of the files of each input
Noting = Callable[[Mapping[str, Mapping[str, str]]], list[str]]  # from the SHA-256 of the inputs' files to notes


def write_merge(
    run: Run,
    config: MergeConfig,
    inputs: Inputs,
    made: Made,
    *,
    settings: MergeSettings,
    by: str | None = None,
    noting: Noting | None = None,
) -> None:
    """Write what :func:`~reproalign.common.merging.outcome.plan_merge` laid out into the folder of an open run.

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
        _write_ensemble(run, config, settings, made, by)
    else:
        with _hashing(inputs.files) as hashes:
            _write_model(run, config, made, inputs, hashes, by, noting)


def _write_ensemble(run: Run, config: MergeConfig, settings: MergeSettings, plan: EnsemblePlan, by: str) -> None:
    print_notes(warning_console(), plan.notes)
    folder = run.dir / PARTIAL
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    digests = {name: identify_weights(name, None) for name in plan.members}
    for name, digest in digests.items():
        run.add_fingerprint("weights", name, digest)
    with space_needed(f"output_dir={run.dir}"):
        write_ensemble_files(folder, plan)
    checked = verify_ensemble(folder, config.verify)
    put_in_place(folder, run.dir / "model")
    run.made_weights("model", run.dir / "model", identify_weights(str(run.dir / "model"), None))
    run.set("verified", checked)
    _note(run, "model", by, as_plan_file(settings), plan.notes)
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
    print_notes(warning_console(), plan.agreement.notes)
    assert inputs.template is not None
    folder = run.dir / PARTIAL
    folder.mkdir(exist_ok=True)
    written = sum(path.stat().st_size for path in folder.iterdir())
    check_space(run.dir, plan.output_bytes - written)
    with threads(config.threads) as workers, counting("merging", plan.work, size=True) as advance:
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
    print_notes(warning_console(), notes)
    plan.agreement.notes += notes
    (folder / JOURNAL).unlink()
    target = run.dir / "model"
    put_in_place(folder, target)
    run.made_weights("model", target, sha256_json(files), files=files)
    run.set_metrics({"tensors": len(plan.jobs), "bytes": plan.output_bytes})
    run.set("verified", checked)
    _note(run, "model", by, as_plan_file(plan.settings), plan.agreement.notes)
    print(f"merged model ({decimal(plan.output_bytes)}, {len(plan.jobs)} tensors, {checked}): {target}")


def write_adapter(run: Run, merged: MergedAdapter, inputs: Inputs, *, plan: Mapping[str, Any], made_by: str) -> None:
    """Write a merged adapter into the run's folder as ``adapter``, and record it.

    Args:
        run: open.
        merged: the adapter.
        inputs: what it was merged from.
        plan: the settings, for the card.
        made_by: command and method, for the card.

    Raises:
        UserError: for a full disk.
    """
    print_notes(warning_console(), merged.notes)
    folder = run.dir / PARTIAL
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with _hashing(inputs.files) as hashes:
        _record_inputs(run, hashes)
    with space_needed(f"output_dir={run.dir}"):
        save_file(merged.tensors, folder / WEIGHTS, metadata={"format": "pt"})
        write_json(folder / CONFIG, merged.config)
        if merged.manifest:
            write_json(folder / MANIFEST, merged.manifest)
        copy_files(inputs.adapters[0].folder, folder)
    files = {WEIGHTS: sha256_file(folder / WEIGHTS)}
    put_in_place(folder, run.dir / "adapter")
    run.made_weights("adapter", run.dir / "adapter", sha256_json(files), files=files)
    run.set_metrics({"factor_delta_gap": merged.gap, "error": merged.error})
    _note(run, "adapter", made_by, plan, merged.notes)
    print(f"merged adapter: {run.dir / 'adapter'}")


def _note(run: Run, folder: str, by: str, plan: Mapping[str, Any], notes: list[str]) -> None:
    """Record how a folder of the run was merged, for its card."""
    run.set("merges", {**run.record.get("merges", {}), folder: {"by": by, "plan": dict(plan)}})
    run.set("notes", notes)


@contextmanager
def _hashing(inputs: Mapping[str, list[Path]]) -> Iterator[Hashes]:
    """Take the SHA-256 of every input while the merge runs: the same bytes come from the page cache to both."""
    pool = ThreadPoolExecutor(max(len(inputs), 1), "hash")
    try:
        # File by file, so that a merge that fails waits for those under way and not for all that are left.
        yield {label: {path.name: pool.submit(_checked, path) for path in files} for label, files in inputs.items()}
    finally:
        pool.shutdown(cancel_futures=True)


def _checked(path: Path) -> str:
    return digest_of(as_written(path))


def _record_inputs(run: Run, hashes: Hashes) -> dict[str, dict[str, str]]:
    digests = {label: {name: future.result() for name, future in files.items()} for label, files in hashes.items()}
    for label, files in digests.items():
        run.add_fingerprint("weights", label, sha256_json(files), files=files)
    return digests
