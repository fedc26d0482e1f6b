"""``dtm merge``: one model from the sub-models of the clusters."""

from __future__ import annotations

from reproalign.common.invocation import Invocation
from reproalign.common.records import Run
from reproalign.common.verbs import merge as core
from reproalign.dtm.merge.config import MergeConfig
from reproalign.dtm.merge.settings import Plan, core_config, resolve


def merge(config: MergeConfig, invocation: Invocation) -> None:
    """Merge sub-models, and leave a run: ``run.json`` beside ``adapter`` or ``model``.

    Raises:
        UserError: for settings or sub-models that cannot be merged; nothing is left behind then.
    """
    plan = resolve(config)
    if plan.space == "factor" and plan.output == "model":
        _through_adapter(plan, invocation)
    else:
        core.merge(core_config(plan, plan.output), invocation)


def dry_run(config: MergeConfig, invocation: Invocation) -> None:
    """Check everything that :func:`merge` checks before it writes, and print what it would do."""
    plan = resolve(config)
    output = "adapter" if plan.space == "factor" else plan.output
    core.dry_run(core_config(plan, output), invocation)


def _through_adapter(plan: Plan, invocation: Invocation) -> None:
    """Average the factors into an adapter, then fold that: B̄ Ā is no sum of the sub-models' B A."""
    with Run.open(invocation) as run:
        adapter = run.dir / "adapter"
        if not adapter.is_dir():
            core.merge_into(run, core_config(plan, "adapter"))
        core.merge_into(run, core_config(plan, "model", method="linear", models=[str(adapter)], weights=None))
