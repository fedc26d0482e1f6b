"""``dtm merge``: one model from the sub-models of the clusters."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from reproalign.common.console import result_console, warning_console
from reproalign.common.invocation import Invocation
from reproalign.common.launch.children import Child
from reproalign.common.launch.together import run_children
from reproalign.common.merging.inputs import open_inputs
from reproalign.common.merging.report import adapter_table, print_notes
from reproalign.common.merging.resolving import resolve as resolve_core
from reproalign.common.merging.settings import MergeSettings
from reproalign.common.records import Run
from reproalign.common.verbs import merge as core
from reproalign.common.verbs.merge_writing import write_adapter
from reproalign.dtm.merge.config import MergeConfig
from reproalign.dtm.merge.core import core_config, linear_config
from reproalign.dtm.merge.flat import check_released, merge_flat
from reproalign.dtm.merge.settings import AUTO, SubModelMergePlan, planned, resolve
from reproalign.dtm.merge.statistics import plan_statistics


def merge(config: MergeConfig, invocation: Invocation) -> None:
    """Merge sub-models, and leave a run: ``run.json`` beside ``adapter`` or ``model``.

    Raises:
        UserError: for settings or sub-models that cannot be merged; nothing is left behind then.
    """
    plan = resolve(config)
    if plan.rules.flat_factors:
        _merge_released(plan, invocation)
    elif plan.space == "factor" and plan.output == "model":
        with Run.open(invocation) as run:
            if not (run.dir / "adapter").is_dir():
                core.merge_into(run, core_config(plan, "adapter"))
            _fold(run, plan)
    elif plan.statistics == AUTO:
        _measure_and_merge(plan, invocation)
    else:
        core.merge(core_config(plan, plan.output), invocation)


def check_options(config: MergeConfig, models: Sequence[str], *, adapters: bool) -> SubModelMergePlan:
    """Check the options alone, for sub-models that need not be there yet.

    Args:
        config: of the merge; its ``models`` are not read.
        models: names of the sub-models.
        adapters: they are adapters, not full models.

    Raises:
        UserError: naming the key.
    """
    plan = planned(config, models, [adapters] * len(models))
    _core_settings(plan)
    return plan


def dry_run(config: MergeConfig, invocation: Invocation) -> None:
    """Check everything that :func:`merge` checks before it writes, and print what it would do."""
    plan = resolve(config)
    if plan.rules.flat_factors:
        settings = _core_settings(plan)
        with open_inputs(settings) as inputs:
            merged = merge_flat(plan, inputs)
        result_console().print(adapter_table(settings, merged))
        print_notes(warning_console(), merged.notes)
        return
    if plan.statistics == AUTO:
        for child in _statistics(plan, invocation):
            print(shlex.join(child.invocation.command))
        return
    output = "adapter" if plan.space == "factor" else plan.output
    core.dry_run(core_config(plan, output), invocation)


def _measure_and_merge(plan: SubModelMergePlan, invocation: Invocation) -> None:
    """Measure every sub-model on the rows it was trained on, each a run of its own, then merge."""
    children = _statistics(plan, invocation)
    _core_settings(plan)  # refuses what is wrong before the work
    with Run.open(invocation) as run:
        folders = run_children(run, children)
        core.merge_into(run, core_config(plan, plan.output, statistics=[str(folder) for folder in folders]))


def _core_settings(plan: SubModelMergePlan) -> MergeSettings:
    """Return the checked settings of the core's merge that comes first.

    Raises:
        UserError: for a value that the core, or the release, does not take.
    """
    if plan.rules.flat_factors:
        check_released(plan)
        return resolve_core(linear_config(plan))
    if plan.statistics == AUTO:  # the sub-models stand for the statistics that are not measured yet
        return resolve_core(core_config(plan, plan.output, statistics=list(plan.models)))
    return resolve_core(core_config(plan, "adapter" if plan.space == "factor" else plan.output))


def _statistics(plan: SubModelMergePlan, invocation: Invocation) -> list[Child]:
    kind = "gram" if plan.config.method == "regmean" else "fisher"
    rows = plan.config.statistics_rows
    return [plan_statistics(invocation, model, number, kind, rows) for number, model in enumerate(plan.models)]


def _merge_released(plan: SubModelMergePlan, invocation: Invocation) -> None:
    settings = _core_settings(plan)
    with open_inputs(settings) as inputs:
        merged = merge_flat(plan, inputs)
        with Run.open(invocation) as run:
            if not (run.dir / "adapter").is_dir():
                result_console().print(adapter_table(settings, merged))
                made_by = f"`dtm merge` with `variant=released method={plan.config.method}`"
                write_adapter(run, merged, inputs, plan=_card(plan), made_by=made_by)
            if plan.output == "model":
                _fold(run, plan)


def _fold(run: Run, plan: SubModelMergePlan) -> None:
    """Fold the adapter that was just made into its base: B̄ Ā is no sum of the sub-models' B A."""
    core.merge_into(
        run, linear_config(plan, models=[str(run.dir / "adapter")], weights=None, output="model", space=None)
    )


def _card(plan: SubModelMergePlan) -> dict[str, Any]:
    """Return the keys that were given, as a user would type them."""
    config, default = plan.config, MergeConfig()
    changed = {key: value for key, value in vars(config).items() if value != getattr(default, key)}
    return {**changed, "models": list(plan.models)}
