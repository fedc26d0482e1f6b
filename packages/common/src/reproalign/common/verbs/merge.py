"""``merge``: combine the weights of models, or of adapters, into a folder that ``from_pretrained`` reads."""

from __future__ import annotations

from pathlib import Path

from reproalign.common.console import result_console
from reproalign.common.invocation import Invocation
from reproalign.common.merging.config import MergeConfig
from reproalign.common.merging.ensemble import plan_ensemble
from reproalign.common.merging.inputs import Inputs, open_inputs
from reproalign.common.merging.outcome import merge_opened_adapters, plan_merge
from reproalign.common.merging.planning import MergePlan
from reproalign.common.merging.report import adapter_table, plan_table, print_notes
from reproalign.common.merging.resolving import resolve
from reproalign.common.merging.stream import threads
from reproalign.common.merging.writer import check_space
from reproalign.common.records import Run
from reproalign.common.verbs.merge_writing import write_merge


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
            merged = merge_opened_adapters(settings, inputs)
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
