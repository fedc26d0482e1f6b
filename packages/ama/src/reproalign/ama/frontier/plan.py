"""The child runs of ``ama frontier``: for each model its ratios, its average and its evaluations."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reproalign.ama.adapt.settings import check_options as check_adapt
from reproalign.ama.average.config import AverageConfig
from reproalign.ama.average.verb import check_models
from reproalign.ama.average.verb import check_options as check_average
from reproalign.ama.cli import ADAPT, AVERAGE, EVALUATE
from reproalign.ama.frontier.config import FrontierConfig
from reproalign.ama.frontier.entries import Model, Sweeps
from reproalign.ama.frontier.evaluate import check_inputs
from reproalign.ama.frontier.evaluate import check_options as check_evaluate
from reproalign.ama.frontier.evaluated import OUTPUTS
from reproalign.ama.frontier.settings import check_settings
from reproalign.ama.frontier.sweeps import PRE, make_sweeps
from reproalign.common.errors import UserError
from reproalign.common.invocation import Invocation, Verb, structured
from reproalign.common.launch.children import Child, check_launches, given_words, naming, plan_child
from reproalign.common.launch.plan import Hardware
from reproalign.common.launch.together import GPUS, slots
from reproalign.common.options.words import as_word, section_words
from reproalign.common.verbs import EVALUATE_SUITE, JUDGE
from reproalign.common.verbs.evaluate import check_options as check_suite

# Keys of the children that frontier sets itself.
OWNED = {
    "adapt": (
        *("output_dir", "seed", "variant", "pre", "post", "alpha", "alpha_on", "parts", "tensors", "head", "rows"),
        "model.name",  # the rest of `model` may be others: the exact solver wants float32
    ),
    "average": (
        *("output_dir", "variant", "pre", "post", "method", "alpha", "alpha_on", "parts", "ratios", "only"),
        *("pattern", "name", "tensors", "head", "fraction", "checkpoints", "decay", "reset_every"),
    ),
    "evaluate": ("output_dir", "seed", "variant", "model"),
    "benchmarks": ("output_dir", "model"),
    "win_rate.judge": ("output_dir", "first", "second"),
}
AGAIN = f"{PRE}-again"  # θ_0 with another seed: the noise floor


@dataclass(frozen=True)
class Chain:
    """The child runs of a model, in the order in which they are run.

    Attributes:
        model: what is evaluated.
        adapt: finds its ratios.
        average: makes it.
        evaluate: samples, scores, and measures perplexities.
        benchmarks: runs the suite.
        judge: compares its responses with others.
    """

    model: Model
    adapt: Child | None
    average: Child | None
    evaluate: Child
    benchmarks: Child | None
    judge: Child | None

    @property
    def children(self) -> list[Child]:
        """All of them."""
        return [
            child
            for child in (self.adapt, self.average, self.evaluate, self.benchmarks, self.judge)
            if child is not None
        ]


@dataclass(frozen=True)
class FrontierPlan:
    """Everything that is run.

    Attributes:
        sweeps: models and rows.
        chains: of each model, by its name; θ_0's is the first.
        again: the second evaluation of θ_0, if there is one.
    """

    sweeps: Sweeps
    chains: dict[str, Chain]
    again: Child | None

    @property
    def children(self) -> list[Child]:
        """All child runs."""
        return [
            *(child for chain in self.chains.values() for child in chain.children),
            *([] if self.again is None else [self.again]),
        ]


def make_plan(config: FrontierConfig, invocation: Invocation) -> FrontierPlan:
    """Compose and check every child run; nothing is run.

    Raises:
        UserError: for anything wrong in the options, naming the key or the child; for files or models that are not
            there or do not fit together.
    """
    check_settings(config)
    plan = _Planner(config, invocation).plan()
    check_launches(plan.children)
    places(plan, config)
    _check_inputs(config, plan)
    return plan


def places(plan: FrontierPlan, config: FrontierConfig) -> list[dict[str, str]]:
    """Return where children can work at the same time, as what is added to their environment.

    Raises:
        UserError: if ``at_once`` does not fit this machine.
    """
    return slots(plan.children, config.at_once, Hardware.detect(), os.environ.get(GPUS))


class _Planner:
    def __init__(self, config: FrontierConfig, invocation: Invocation) -> None:
        self.config = config
        self.invocation = invocation
        self.folder = Path(config.output_dir)
        self.common = [as_word("seed", config.seed), as_word("variant", config.variant)]

    def plan(self) -> FrontierPlan:
        sweeps = make_sweeps(self.config)
        names = [model.name for model in sweeps.models]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"two models would be called '{twice}'; rename what of post and models leads to it")
        chains = {model.name: self._chain(model) for model in sweeps.models}
        again = None
        if self.config.noise_floor:
            seed = as_word("seed", self.config.seed + 1)
            again = self._evaluate(AGAIN, self.config.pre, [seed, as_word("variant", self.config.variant)])
        return FrontierPlan(sweeps, chains, again)

    def _chain(self, model: Model) -> Chain:
        adapt = None if model.learned is None else self._adapt(model)
        average = None if model.path is not None else self._average(model, adapt)
        path = model.path if model.path is not None else str(self.folder / f"average-{model.name}" / "model")
        evaluate = self._evaluate(model.name, path, self.common)
        benchmarks = None
        if self.config.evaluate_on:
            words = [as_word("suite", self.config.evaluate_on), *self._held(path)]
            benchmarks = self._child(
                f"benchmarks-{model.name}", EVALUATE_SUITE, words, "benchmarks", self.config.benchmarks, check_suite
            )
        return Chain(model, adapt, average, evaluate, benchmarks, self._judge(model.name))

    def _adapt(self, model: Model) -> Child:
        learned = model.learned
        assert learned is not None
        sweep = getattr(self.config, learned.sweep)
        given = dict(sweep.adapt)
        if learned.sweep == "adamerging":
            given.setdefault("objective", "labelled")
        words = [
            *self.common,
            as_word("pre", self.config.pre),
            as_word("post", self.config.post[learned.post]),
            *section_words("model", self.config.model),
            as_word("alpha", learned.alpha),
            as_word("parts", learned.level),
            as_word("tensors", self.config.tensors),
        ]
        if self.config.head is not None:
            words.append(as_word("head", self.config.head))
        if learned.post in sweep.rows:
            words.append(as_word("rows", sweep.rows[learned.post]))
        section = f"{learned.sweep}.adapt"
        return self._child(f"adapt-{model.name}", ADAPT, words, section, given, check_adapt, owned="adapt")

    def _average(self, model: Model, adapt: Child | None) -> Child:
        keys = dict(model.average)
        if adapt is not None:
            keys["ratios"] = str(self.folder / adapt.name)
        words = [
            as_word("variant", self.config.variant),
            as_word("pre", self.config.pre),
            as_word("post", self.config.post[model.post]),
            *(as_word(key, value) for key, value in keys.items()),
        ]

        def check(config: AverageConfig) -> None:
            if model.learned is not None:  # the file of ratios is not there yet
                config = replace(config, ratios=None, parts=model.learned.level, alpha=model.learned.alpha)
            check_average(config)

        return self._child(f"average-{model.name}", AVERAGE, words, "average", self.config.average, check)

    def _evaluate(self, name: str, path: str, common: Sequence[str]) -> Child:
        words = [*common, *self._held(path)]
        return self._child(f"evaluate-{name}", EVALUATE, words, "evaluate", self.config.evaluate, check_evaluate)

    def _judge(self, name: str) -> Child | None:
        options = self.config.win_rate
        if self.config.x != "win_rate" or (name == PRE and options.against is None):
            return None
        second = options.against or str(self.folder / f"evaluate-{PRE}" / OUTPUTS)
        words = [as_word("first", str(self.folder / f"evaluate-{name}" / OUTPUTS)), as_word("second", second)]
        return self._child(f"judge-{name}", JUDGE, words, "win_rate.judge", options.judge, None)

    def _held(self, path: str) -> list[str]:
        return section_words("model", replace(self.config.model, name=path))

    def _child(
        self,
        name: str,
        verb: Verb,
        words: Sequence[str],
        section: str,
        given: Mapping[str, Any],
        check: Callable[[Any], object] | None,
        owned: str = "",
    ) -> Child:
        more = given_words(section, given, OWNED[owned or section], by="frontier")
        child = plan_child(self.invocation, name, verb, [*words, *more])
        with naming(child.name):
            if check is not None:
                check(structured(child.invocation.schema, child.invocation.config))
        return child


def _check_inputs(config: FrontierConfig, plan: FrontierPlan) -> None:
    """Refuse files and models that are not there, and models that do not fit, before hours of work."""
    for chain in plan.chains.values():
        if chain.average is None:
            with naming(chain.evaluate.name):
                check_inputs(structured(chain.evaluate.invocation.schema, chain.evaluate.invocation.config))
    for post in config.post:
        first = next((chain for chain in plan.chains.values() if chain.average and chain.model.post == post), None)
        if first is not None and first.average is not None:
            with naming(first.average.name):
                keys: AverageConfig = structured(first.average.invocation.schema, first.average.invocation.config)
                if first.model.learned is not None:
                    learned = first.model.learned
                    keys = replace(keys, ratios=None, parts=learned.level, alpha=learned.alpha)
                check_models(keys)
