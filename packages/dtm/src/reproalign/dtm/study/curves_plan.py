"""The child runs of ``dtm study curves``: for each fraction of the data a training and its evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reproalign.common.errors import UserError
from reproalign.common.invocation import Invocation
from reproalign.common.launch.children import Child, given_words, plan_child, run_child
from reproalign.common.models.load import model_path
from reproalign.common.options.words import as_word
from reproalign.common.records import Run
from reproalign.common.verbs import EVALUATE_SUITE
from reproalign.dtm.children import evaluation_words, training_words
from reproalign.dtm.cli import EVALUATE, TRAIN
from reproalign.dtm.rows import HELD_OUT
from reproalign.dtm.study.config import CurvesConfig
from reproalign.dtm.study.gap import check_fractions

# Keys of the children that the study sets itself.
OWNED = {
    "train": ("output_dir", "seed", "variant", "model", "data_ratio", "cluster"),
    "evaluate": ("output_dir", "seed", "variant", "model"),
    "benchmarks": ("output_dir", "model"),
}


@dataclass(frozen=True)
class CurvesPlan:
    """The children, in the order they are run, and at which fraction each evaluation is."""

    children: list[Child]
    evaluations: dict[str, float]  # name of a child -> fraction


def check_plan(config: CurvesConfig) -> None:
    """Refuse what no child could be made of.

    Raises:
        UserError: naming the key.
    """
    check_fractions(config.fractions)
    if not config.model.name:
        raise UserError("model.name is not set; give the base model, or runs=[…] of evaluations that there are")
    model_path(config.model.name)
    if config.at is not None:
        raise UserError("at is for runs=[…]; trainings that this command starts are at `fractions`")
    if not ("dispersal" in config.train or "rows" in config.train):
        raise UserError(
            "train names no rows; set train.dispersal=FOLDER, or train.rows=[FILES] and evaluate.rows=[FILES]"
        )
    if "rows" not in config.evaluate:
        held_out = Path(str(config.train.get("dispersal", ""))) / HELD_OUT
        if "dispersal" not in config.train or not held_out.is_file():
            raise UserError(
                "evaluate.rows is not set, and train.dispersal has no held_out.jsonl; set evaluate.rows=[FILES], or "
                "disperse with data.eval_fraction"
            )
    if config.benchmarks and not config.evaluate_on:
        raise UserError("benchmarks is for evaluate_on=NAME, e.g. dtm; set it, or leave benchmarks out")


def make_plan(config: CurvesConfig, invocation: Invocation) -> CurvesPlan:
    """Compose every child.

    Raises:
        UserError: naming the child, for anything wrong in its words.
    """
    common = [as_word("seed", config.seed), as_word("variant", config.variant)]
    children: list[Child] = []
    evaluations: dict[str, float] = {}
    for fraction in [0.0, *config.fractions]:
        name, model = "base", config.model.name
        if fraction:
            name = f"{fraction:g}"
            words = [*common, *training_words(config.model), as_word("data_ratio", fraction)]
            words += given_words("train", config.train, OWNED["train"], by="study curves")
            children.append(plan_child(invocation, f"train-{name}", TRAIN, words))
            model = str(Path(config.output_dir) / f"train-{name}" / "model")
        for child in _evaluations(config, invocation, name, model, common):
            children.append(child)
            evaluations[child.name] = fraction
    return CurvesPlan(children, evaluations)


def run_plan(plan: CurvesPlan, run: Run) -> tuple[list[str], list[float]]:
    """Run the children; return the folders of the evaluations and their fractions."""
    folders = {child.name: run_child(run, child) for child in plan.children}
    return [str(folders[name]) for name in plan.evaluations], list(plan.evaluations.values())


def _evaluations(
    config: CurvesConfig, invocation: Invocation, name: str, model: str, common: Sequence[str]
) -> list[Child]:
    held = evaluation_words(config.model, model)
    rows = [] if "rows" in config.evaluate else [as_word("rows", [str(Path(config.train["dispersal"]) / HELD_OUT)])]
    given = given_words("evaluate", config.evaluate, OWNED["evaluate"], by="study curves")
    made = [plan_child(invocation, f"evaluate-{name}", EVALUATE, [*common, *held, *rows, *given])]
    if config.evaluate_on:
        given = given_words("benchmarks", config.benchmarks, OWNED["benchmarks"], by="study curves")
        words = [as_word("suite", config.evaluate_on), *held, *given]
        made.append(plan_child(invocation, f"benchmarks-{name}", EVALUATE_SUITE, words))
    return made
