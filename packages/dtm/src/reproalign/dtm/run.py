"""The verb ``run``: from instruction rows to the merged model and its evaluation, each step a run of its own."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reproalign.common.console import say
from reproalign.common.errors import UserError
from reproalign.common.invocation import Invocation, Verb, structured
from reproalign.common.launch.children import Child, check_launches, given_words, naming, plan_child, run_child
from reproalign.common.options.words import as_word
from reproalign.common.records import Run, fingerprint_folder
from reproalign.common.records.folder import read_record
from reproalign.common.verbs import EVALUATE_SUITE
from reproalign.common.verbs.evaluate import check_options as check_suite
from reproalign.dtm.children import evaluation_words, training_words
from reproalign.dtm.cli import DISPERSE, EVALUATE, MERGE, TRAIN, TRAIN_EACH
from reproalign.dtm.config import PipelineConfig
from reproalign.dtm.disperse.config import DisperseConfig
from reproalign.dtm.disperse.settings import resolve as check_disperse
from reproalign.dtm.merge.verb import check_options as check_merge
from reproalign.dtm.report import write_report
from reproalign.dtm.rows import HELD_OUT
from reproalign.dtm.study.evaluate import check_options as check_evaluate
from reproalign.dtm.train.verb import check_options as check_train

# Keys of the children that run sets itself.
OWNED = {
    "disperse": ("output_dir", "seed", "variant"),
    "train": ("output_dir", "seed", "variant", "model.name", "dispersal", "cluster", "clusters"),
    "merges": ("output_dir", "seed", "models", "base"),
    "evaluate": ("output_dir", "seed", "variant", "model", "rows"),
    "benchmarks": ("output_dir", "model"),
}
# What can be refused before there are rows and models; merges are checked with the sub-models' names.
OPTION_CHECKS: dict[Verb, Callable[[Any], object]] = {
    DISPERSE: check_disperse,
    TRAIN: check_train,
    TRAIN_EACH: check_train,
    EVALUATE: check_evaluate,
    EVALUATE_SUITE: check_suite,
}
RESERVED = ("base", "disperse", "train", "vanilla")  # names of children, and of what they start from


@dataclass(frozen=True)
class PipelinePlan:
    """The children, in the order they are run.

    Attributes:
        training: what makes models.
        models: name -> folder, in the order of the report.
        evaluations: kind (``losses``, ``benchmarks``) -> model -> child.
    """

    training: list[Child]
    models: dict[str, str]
    evaluations: dict[str, dict[str, Child]]

    @property
    def children(self) -> list[Child]:
        """All of them."""
        return [*self.training, *(child for part in self.evaluations.values() for child in part.values())]


def run_all(config: PipelineConfig, invocation: Invocation) -> None:
    """Disperse, train a model on each cluster and on all rows, merge, evaluate; resume where it was stopped.

    Raises:
        UserError: for a mistake in the options, those of the children included, before anything is run.
        ReportedError: if a child failed; the same command goes on from it.
    """
    plan = make_plan(config, invocation)
    check_launches(plan.children)
    with Run.open(invocation) as run:
        for child in plan.children:
            run_child(run, child)
        found = {
            kind: {model: read_record(run.dir / child.name)["metrics"] for model, child in part.items()}
            for kind, part in plan.evaluations.items()
        }
        run.set_metrics(found)
        for name, folder in plan.models.items():
            if Path(folder).is_relative_to(run.dir):
                run.add_fingerprint("weights", name, fingerprint_folder(Path(folder)), made=True, path=folder)
        write_report(found, run.dir)
        say(f"models, records and report: {run.dir}")


def show_plan(config: PipelineConfig, invocation: Invocation) -> None:
    """Print the command lines of the child runs."""
    for child in make_plan(config, invocation).children:
        print(shlex.join(child.invocation.command))


def make_plan(config: PipelineConfig, invocation: Invocation) -> PipelinePlan:
    """Compose every child.

    Raises:
        UserError: naming the child, for anything wrong in its words.
    """
    return _Planner(config, invocation).plan()


class _Planner:
    def __init__(self, config: PipelineConfig, invocation: Invocation) -> None:
        self.config = config
        self.invocation = invocation
        self.folder = Path(config.output_dir)
        self.common = [as_word("seed", config.seed), as_word("variant", config.variant)]
        _check(config)
        self.disperse = self._child("disperse", DISPERSE, self.common, "disperse", config.disperse)
        dispersal: DisperseConfig = structured(self.disperse.invocation.schema, self.disperse.invocation.config)
        self.clusters = dispersal.clusters
        self.held_out = dispersal.data.eval_fraction > 0
        if config.evaluate and not self.held_out:
            raise UserError("evaluate.*: no rows are held out; set disperse.data.eval_fraction=0.05, or remove it")

    def plan(self) -> PipelinePlan:
        models = {"base": self.config.model.name}
        training = [self.disperse, self._train("train", TRAIN_EACH, {}, [as_word("clusters", "all")])]
        subs = {f"cluster-{index}": str(self.folder / f"train/cluster-{index}/model") for index in range(self.clusters)}
        if self.config.sub_models:
            models |= subs
        beside: dict[str, Any] = {"vanilla": {}} if self.config.vanilla else {}
        for name, given in (beside | self.config.beside).items():
            training.append(self._train(name, TRAIN, given or {}, []))
            models[name] = str(self.folder / name / "model")
        for name, given in self.config.merges.items():
            if given is not None:
                child, models[name] = self._merge(name, given, list(subs.values()))
                training.append(child)
        return PipelinePlan(training, models, self._evaluations(models))

    def _train(self, name: str, verb: Verb, given: Mapping[str, Any], words: list[str]) -> Child:
        section = f"beside.{name}" if name in self.config.beside else "train"
        words = [
            *self.common,
            *training_words(self.config.model),
            as_word("dispersal", str(self.folder / "disperse")),
            *words,
            *given_words("train", self.config.train, OWNED["train"], by="run"),
        ]
        return self._child(name, verb, words, section if given else "", given, owned="train")

    def _merge(self, name: str, given: Mapping[str, Any], models: Sequence[str]) -> tuple[Child, str]:
        """Return the run of a merge, and the folder of what it makes."""
        words = [*self.common, as_word("models", str(self.folder / "train"))]
        child = self._child(f"merge-{name}", MERGE, words, f"merges.{name}", given, owned="merges")
        with naming(child.name):
            made = check_merge(
                structured(child.invocation.schema, child.invocation.config),
                models,
                adapters=self.config.model.lora.enabled,
            )
        return child, str(self.folder / child.name / made.output)

    def _evaluations(self, models: Mapping[str, str]) -> dict[str, dict[str, Child]]:
        made: dict[str, dict[str, Child]] = {}
        if self.held_out:
            rows = as_word("rows", [str(self.folder / "disperse" / HELD_OUT)])
            made["losses"] = {
                name: self._child(
                    f"evaluate-{name}",
                    EVALUATE,
                    [*self.common, rows, *evaluation_words(self.config.model, path)],
                    "evaluate",
                    self.config.evaluate,
                )
                for name, path in models.items()
            }
        if self.config.evaluate_on:
            made["benchmarks"] = {
                name: self._child(
                    f"benchmarks-{name}",
                    EVALUATE_SUITE,
                    [as_word("suite", self.config.evaluate_on), *evaluation_words(self.config.model, path)],
                    "benchmarks",
                    self.config.benchmarks,
                )
                for name, path in models.items()
            }
        return made

    def _child(
        self, name: str, verb: Verb, words: Sequence[str], section: str, given: Mapping[str, Any], owned: str = ""
    ) -> Child:
        more = given_words(section, given, OWNED[owned or section], by="run") if given else []
        child = plan_child(self.invocation, name, verb, [*words, *more])
        with naming(child.name):
            if verb in OPTION_CHECKS:
                OPTION_CHECKS[verb](structured(child.invocation.schema, child.invocation.config))
        return child


def _check(config: PipelineConfig) -> None:
    """Refuse names that cannot be folders or are taken, and options without a reader.

    Raises:
        UserError: naming the key.
    """
    for section, names in (("beside", config.beside), ("merges", config.merges)):
        for name in names:
            if not re.fullmatch(r"\w[\w.-]*", name):
                raise UserError(f"{section}.{name}: a folder is named by it; use letters, digits, dots and dashes")
            if name in RESERVED:
                raise UserError(f"{section}.{name}: there is a '{name}' already; choose another name")
    both = sorted(set(config.beside) & set(config.merges))
    if both:
        raise UserError(f"beside.{both[0]} and merges.{both[0]} name two models alike; rename one")
    if config.benchmarks and not config.evaluate_on:
        raise UserError("benchmarks.*: there is no suite to evaluate on; set evaluate_on=dtm, or remove it")
