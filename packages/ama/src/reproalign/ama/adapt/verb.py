"""The verb ``adapt``: a ratio for each part of the network, learned with a given mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from accelerate import PartialState
from rich.console import Console

from reproalign.ama.adapt.config import AdaptConfig
from reproalign.ama.adapt.exact import solve_exact
from reproalign.ama.adapt.measuring import Measuring
from reproalign.ama.adapt.pair import Pair, open_pair
from reproalign.ama.adapt.preparing import PreparedProblem, prepare
from reproalign.ama.adapt.published import solve_published
from reproalign.ama.adapt.region import Region
from reproalign.ama.adapt.report import draw_course, epsilon_table, ratio_table
from reproalign.ama.adapt.rows import read_dialogues
from reproalign.ama.adapt.search import search
from reproalign.ama.adapt.settings import AdaptSettings, check_options
from reproalign.ama.adapt.solution import Solution, Solver
from reproalign.ama.inputs import identity
from reproalign.ama.parts import make_parts
from reproalign.ama.ratios import constraint_weights
from reproalign.ama.ratios_file import NAME, Ratios, write_ratios
from reproalign.ama.tensors import TensorRule, tensor_rule
from reproalign.common.console import result_console
from reproalign.common.data.holdout import hold_out
from reproalign.common.errors import UserError
from reproalign.common.files import sha256_json
from reproalign.common.invocation import Invocation
from reproalign.common.records import Run
from reproalign.common.records.fingerprints import identity_entry

SOLVERS: Mapping[str, Solver] = {"published": solve_published, "exact": solve_exact}
ACROSS = {"published": "optimiser step", "exact": "evaluation", "search": "candidate"}


def adapt(config: AdaptConfig, invocation: Invocation) -> None:
    """Learn the ratios and write ``ratios.json``, which ``ama average`` and ``ama frontier`` read.

    Raises:
        UserError: for a mistake in the options, models that do not fit, or rows that cannot be used, before anything is
            written.
        ReportedError: if a child run failed.
    """
    settings = check_options(config)
    measuring = Measuring(config, invocation)
    with open_pair(config.pre, config.post, config.allow) as pair:
        rule = _rule(settings, pair)
        if config.reward is not None:
            measuring.plan("check")
        if settings.objective == "reward":
            with Run.open(invocation) as run:
                _identify(run, config)
                solutions = {settings.epsilons[0]: _search(run, config, settings, rule, measuring)}
                _finish(run, config, settings, rule, solutions, {})
            return
        dialogues = read_dialogues(str(config.rows), settings.objective, config.max_rows)
        parts = hold_out(
            dialogues, config.eval_fraction, config.seed, lambda dialogue: dialogue[:-1], key="eval_fraction"
        )
        prepared = prepare(config, settings, pair, rule, *parts)
        with Run.open(invocation, is_main=PartialState().is_main_process) as run:
            _identify(run, config)
            run.add_fingerprint("data", "rows", sha256_json(dialogues), path=config.rows, rows=len(dialogues))
            _learn(run, config, settings, rule, prepared, measuring)


def dry_run(config: AdaptConfig, invocation: Invocation) -> None:
    """Check everything that needs no weights in memory, and print the groups and what their ratios can reach."""
    settings = check_options(config)
    with open_pair(config.pre, config.post, config.allow) as pair:
        rule = _rule(settings, pair)
        if config.reward is not None:
            Measuring(config, invocation).plan("check")
        if config.rows is not None:
            rows = len(read_dialogues(config.rows, settings.objective, config.max_rows))
            print(f"{rows} rows; objective={settings.objective}, solver={settings.solver}")
        for epsilon in settings.epsilons:
            result_console().print(ratio_table(rule.parts, settings, epsilon))
        for note in pair.notes:
            print(f"note: {note}")


def _rule(settings: AdaptSettings, pair: Pair) -> TensorRule:
    variant = settings.variant
    parts = make_parts(settings.parts, pair.blocks, released=variant.release_parts)
    if not parts.names:
        raise UserError(f"parts={settings.parts} groups no layer in variant=released; take block3")
    return tensor_rule(settings.tensors, settings.head, parts, pair.blocks, learned_head=variant.learned_head)


def _identify(run: Run, config: AdaptConfig) -> None:
    run.log_again()  # what was found before is logged from where it is kept
    for key in ("pre", "post"):
        name = str(getattr(config, key))
        run.add_fingerprint("weights", key, identity(name), path=name)


def _learn(
    run: Run,
    config: AdaptConfig,
    settings: AdaptSettings,
    rule: TensorRule,
    prepared: PreparedProblem,
    measuring: Measuring,
) -> None:
    """Solve for every ε, choose between them, and see what was gained on what was held out."""
    held_out: dict[str, Any] = {}
    equal = [settings.base] * len(rule.parts.names)
    if prepared.held_out:
        held_out["equal_ratios"] = prepared.loss_on_held_out(equal)
    solutions: dict[float, Solution] = {}
    criteria: dict[float, dict[str, Any]] = {}
    done = 0
    for epsilon in settings.epsilons:
        folder = run.dir / f"epsilon-{epsilon:g}" if settings.several else run.dir
        if run.is_main:
            folder.mkdir(exist_ok=True)
        PartialState().wait_for_everyone()
        log = partial(_log, run, done, epsilon)
        solution = SOLVERS[settings.solver](prepared.problem, epsilon, folder, log)
        done += solution.steps
        solutions[epsilon] = solution
        entry: dict[str, Any] = {"ratios": dict(zip(rule.parts.names, solution.ratios, strict=True))}
        if prepared.held_out:
            entry["held_out_loss"] = prepared.loss_on_held_out(solution.ratios)
        if settings.several and config.reward is not None:
            found = _ratios(config, settings, rule, epsilon, solution)
            entry["reward"] = measuring.reward(run, f"epsilon-{epsilon:g}", found)
        criteria[epsilon] = entry
    by_reward = settings.several and config.reward is not None
    for entry in criteria.values():
        entry["criterion"] = entry["reward"] if by_reward else -entry.get("held_out_loss", 0.0)
    chosen = max(criteria, key=lambda epsilon: criteria[epsilon]["criterion"])
    held_out |= {"criterion": "reward" if by_reward else "held-out log-likelihood per token", "found": criteria}
    _finish(run, config, settings, rule, {chosen: solutions[chosen]}, held_out)


def _search(run: Run, config: AdaptConfig, settings: AdaptSettings, rule: TensorRule, measuring: Measuring) -> Solution:
    epsilon = settings.epsilons[0]
    weights = constraint_weights(rule.parts.layer_shares, settings.constraint).tolist()

    def measure(number: int, ratios: list[float]) -> float:
        found = _ratios(config, settings, rule, epsilon, Solution(ratios, number, {}))
        return measuring.reward(run, str(number), found)

    region = Region(settings.base, weights, epsilon, settings.bounded)
    return search(region, list(rule.parts.names), config.search, measure, partial(_log, run, 0, epsilon))


def _log(run: Run, before: int, epsilon: float, step: int, numbers: Mapping[str, float]) -> None:
    run.log(before + step, {"epsilon": epsilon, **numbers})


def _ratios(
    config: AdaptConfig, settings: AdaptSettings, rule: TensorRule, epsilon: float, solution: Solution
) -> Ratios:
    parts = rule.parts
    found = {
        "objective": settings.objective,
        "solver": settings.solver,
        "constraint": settings.constraint,
        "normalisation": settings.normalisation,
        "rows": config.rows,
        **solution.facts,
    }
    return Ratios(
        level=settings.parts,
        groups=dict(zip(parts.names, solution.ratios, strict=True)),
        base=settings.base,
        means=parts.means(solution.ratios),
        epsilon=epsilon,
        tensors=rule.name,
        head=rule.head,
        variant=config.variant,
        found=found,
        pre={"name": config.pre, **identity_entry(identity(config.pre))},
        post={"name": config.post, **identity_entry(identity(config.post))},
    )


def _finish(
    run: Run,
    config: AdaptConfig,
    settings: AdaptSettings,
    rule: TensorRule,
    solutions: Mapping[float, Solution],
    held_out: dict[str, Any],
) -> None:
    """Write and show what was found."""
    if not run.is_main:
        return
    ((epsilon, solution),) = solutions.items()
    ratios = _ratios(config, settings, rule, epsilon, solution)
    compared: dict[float, Any] = held_out.pop("found", {})
    loss = compared.get(epsilon, {}).get("held_out_loss")
    gain = {"held_out_loss": loss, "held_out_loss_at_equal_ratios": held_out["equal_ratios"]} if loss else {}
    write_ratios(run.dir / NAME, replace(ratios, found={**ratios.found, **gain}))
    metrics = {"ratios": dict(ratios.groups), "mean": ratios.means[0], "layer_weighted_mean": ratios.means[1]}
    run.set_metrics({**metrics, "epsilon": epsilon, "steps": solution.steps, **gain})
    run.set("solution", dict(solution.facts))
    console = result_console()
    if settings.several:
        run.set("epsilons", {f"{value:g}": entry for value, entry in compared.items()} | {"by": held_out["criterion"]})
        console.print(epsilon_table(compared, held_out["criterion"], epsilon))
    console.print(ratio_table(rule.parts, settings, epsilon, solution.ratios))
    _say(console, ratios, gain)
    draw_course(run.rows, rule.parts.names, run.dir / "plots" / "ratios.png", ACROSS[settings.solver])
    console.print(f"ratios, record and plot: {run.dir / NAME}")


def _say(console: Console, ratios: Ratios, gain: Mapping[str, float]) -> None:
    if gain:
        before, after = gain["held_out_loss_at_equal_ratios"], gain["held_out_loss"]
        console.print(f"held-out loss per token: {before:.6f} at equal ratios, {after:.6f} now")
    outside = [f"{name} {ratio:.4f}" for name, ratio in ratios.groups.items() if not 0 <= ratio <= 1]
    if outside:
        console.print(f"note: outside [0, 1]: {', '.join(outside)}; average with allow=[extrapolation]")
