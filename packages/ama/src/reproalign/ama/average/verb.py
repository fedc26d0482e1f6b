"""``ama average``: a model between the one before RLHF and the one after, written as a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from rich.table import Table

from reproalign.ama.average.config import AverageConfig
from reproalign.ama.average.engine import core_config
from reproalign.ama.average.norms import part_norms
from reproalign.ama.average.plan import resolve
from reproalign.ama.average.weights import Averaged, averaged
from reproalign.ama.inputs import check_there
from reproalign.ama.ratios_file import NAME, write_ratios
from reproalign.common.console import note_console, result_console
from reproalign.common.invocation import Invocation
from reproalign.common.merging.config import MergeConfig
from reproalign.common.merging.inputs import Inputs, open_inputs
from reproalign.common.merging.outcome import plan_merge
from reproalign.common.merging.planning import MergePlan
from reproalign.common.merging.resolving import resolve as resolve_core
from reproalign.common.records import Run
from reproalign.common.verbs.merge import show_plan
from reproalign.common.verbs.merge_writing import write_merge


@dataclass(frozen=True)
class _Prepared:
    """Everything that is known before anything is written.

    Attributes:
        config: of the core's merge.
        inputs: opened models.
        merge: the work.
        averaged: ratios and rule; None: the method has none.
    """

    config: MergeConfig
    inputs: Inputs
    merge: MergePlan
    averaged: Averaged | None


def average(config: AverageConfig, invocation: Invocation) -> None:
    """Average two models, and leave a run: ``run.json`` and ``ratios.json`` beside ``model``.

    The model is θ' = a θ_0 + (1 - a) θ tensor by tensor, a being the ratio of the tensor's part (paper, Sections 4 to
    6), in float32 and rounded once; with ``variant=released`` in bfloat16, every product and sum rounded.

    Raises:
        UserError: for keys or models that cannot be averaged; nothing is left behind then.
    """
    with _prepared(config) as prepared, Run.open(invocation) as run:
        _write(run, config, prepared)


def check_options(config: AverageConfig) -> None:
    """Check every key that can be checked without opening a model, which need not be there yet.

    Raises:
        UserError: naming the key.
    """
    resolve(config)


def check_models(config: AverageConfig) -> None:
    """Check also that the models are there and fit together and to the ratios; nothing is written.

    Raises:
        UserError: see :func:`average`.
    """
    with _prepared(config):
        pass


def dry_run(config: AverageConfig, invocation: Invocation) -> None:
    """Check everything that :func:`average` checks before it writes, and print ratios, rules and sizes."""
    with _prepared(config) as prepared:
        if prepared.averaged is not None:
            result_console().print(_ratio_table(prepared.averaged))
            prepared.merge.agreement.notes += prepared.averaged.other_weights({})
        show_plan(prepared.config, prepared.inputs, prepared.merge)


@contextmanager
def _prepared(config: AverageConfig) -> Iterator[_Prepared]:
    plan = resolve(config)
    core = core_config(config)
    settings = resolve_core(core)
    named = {"pre": config.pre, "post": config.post}
    named |= {f"checkpoints[{number}]": name for number, name in enumerate(config.checkpoints or ())}
    check_there({key: name for key, name in named.items() if name}, allow_bin="bin" in (config.allow or ()))
    with open_inputs(settings) as inputs:
        found = None
        if plan is not None:
            found = averaged(plan, inputs.all_models[0])
            settings = replace(settings, weights=found.weights)
        made = plan_merge(settings, inputs)
        assert isinstance(made, MergePlan)
        if found is not None:
            made.agreement.notes += found.other_rule()
        yield _Prepared(core, inputs, made, found)


def _write(run: Run, config: AverageConfig, prepared: _Prepared) -> None:
    found, merge = prepared.averaged, prepared.merge
    if found is not None:
        note_console().print(_ratio_table(found))
        run.set("average", {"method": config.method, "variant": config.variant, **found.facts})
        mean, layer_weighted = found.means
        run.set_metrics({"mean_ratio": mean, "layer_weighted_mean_ratio": layer_weighted})
        write_ratios(run.dir / NAME, found.as_ratios())
        if config.norms:
            run.set("norms", part_norms(merge, found, config.threads))
    by = f"`ama average` with `method={config.method} variant={config.variant}`"
    noting = None if found is None else found.other_weights
    write_merge(run, prepared.config, prepared.inputs, merge, settings=merge.settings, by=by, noting=noting)


def _ratio_table(found: Averaged) -> Table:
    mean, layer_weighted = found.means
    table = Table("part", "layers", "ratio on pre", title=f"parts={found.parts.level}, tensors={found.rule.name}")
    for name, share in zip(found.parts.names, found.parts.layer_shares, strict=True):
        layers = [layer for layer, group in enumerate(found.parts.layer_groups) if group == name]
        table.add_row(name, f"{layers[0]}-{layers[-1]}" if layers else f"{share:.3g}", f"{found.ratios[name]:.4g}")
    table.caption = (
        f"mean over parts {mean:.4g}, over layers {layer_weighted:.4g}; base {found.plan.base:.4g}, head: "
        f"{found.rule.head}"
    )
    return table
