"""Rejection sampling as iterations of child runs: sample, score, select and train, in words, checks and reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rich.table import Table

from reproalign.common.config.model import ModelConfig
from reproalign.common.console import result_console
from reproalign.common.data.records import Message
from reproalign.common.errors import UserError
from reproalign.common.evaluation.plots import MeanCurve, comparison
from reproalign.common.generation.samples import write_rows
from reproalign.common.generation.select import SelectionRules
from reproalign.common.invocation import Invocation, Verb, structured
from reproalign.common.launch.children import Child, given_words, naming, plan_child
from reproalign.common.models.kind import check_language_model, check_reward_model
from reproalign.common.options.words import as_word, section_words
from reproalign.common.verbs import REJECTION_SAMPLING
from reproalign.common.verbs.sample import sampling_rules
from reproalign.common.verbs.score import check_score
from reproalign.common.verbs.select import selection_rules

SAMPLE, SCORE, SELECT = (verb for verb in REJECTION_SAMPLING if verb.name != "align")
OUTPUT = "output_dir"


@dataclass(frozen=True)
class IterationStep:
    """One kind of child run of an iteration.

    Attributes:
        name: of the parent's section with the user's keys for it, and of its folders: ``1-<name>``, ``2-<name>``, ….
        verb: what it does.
        owned: keys, or sections of them, that the parent sets itself.
    """

    name: str
    verb: Verb
    owned: tuple[str, ...]


@dataclass(frozen=True)
class Iterations:
    """What every iteration is made of.

    Attributes:
        by: the verb of the parent.
        train: the last step; the model it leaves in ``model`` is what the next iteration begins with.
        selected: the key of ``train`` that takes the folder of ``select``.
        listed: that key is a list.
        owned: by the name of a step, further keys that the parent sets.
    """

    by: str
    train: IterationStep
    selected: str
    listed: bool = False
    owned: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def steps(self) -> tuple[IterationStep, ...]:
        """The four steps, in their order."""
        first = (
            IterationStep("sample", SAMPLE, ("prompts", "model", "seed", OUTPUT)),
            IterationStep("score", SCORE, ("responses", "model.name", OUTPUT)),
            IterationStep("select", SELECT, ("scored", OUTPUT, "keep")),
        )
        return tuple(
            replace(step, owned=(*step.owned, *self.owned.get(step.name, ()))) for step in (*first, self.train)
        )


@runtime_checkable
class Iterated(Protocol):
    """What every loop of iterations is told; beside it a section of child keys for each of its steps.

    Attributes:
        seed: of the first iteration.
        iterations: how many there are.
        model: the policy that the first one begins with.
        reward: the reward model.
    """

    seed: int
    iterations: int
    model: ModelConfig
    reward: str


def plan_iterations(
    iterations: Iterations,
    invocation: Invocation,
    config: Iterated,
    *,
    words: Mapping[str, Sequence[str]] | None = None,
    seed_step: int = 1,
) -> Iterator[dict[str, Child]]:
    """Compose the children of every iteration, by the names of their steps.

    Args:
        iterations: what each is made of.
        invocation: of the parent.
        config: of the parent; its section of a step's name holds what the user set for that step.
        words: by step, words of the parent for its owned keys.
        seed_step: between the seeds of iterations.

    Raises:
        UserError: for a mistake in the children's keys, naming the child.
    """
    steps = iterations.steps
    users = {
        step.name: given_words(step.name, getattr(config, step.name), step.owned, by=iterations.by) for step in steps
    }
    folder, model = Path(invocation.config[OUTPUT]), config.model
    for number in range(1, config.iterations + 1):
        at = {step.name: folder / f"{number}-{step.name}" for step in steps}
        seed = as_word("seed", config.seed + (number - 1) * seed_step)
        selected = str(at["select"])
        own = {
            "sample": [
                as_word("prompts", str(prompts_file(folder, number))),
                seed,
                *section_words("model", model.loaded()),
            ],
            "score": [as_word("responses", str(at["sample"])), as_word("model.name", config.reward)],
            "select": [as_word("scored", str(at["score"]))],
            iterations.train.name: [
                as_word(iterations.selected, [selected] if iterations.listed else selected),
                seed,
                *section_words("model", model),
            ],
        }
        yield {
            step.name: plan_child(
                invocation,
                at[step.name].name,
                step.verb,
                [*own[step.name], *(words or {}).get(step.name, ()), *users[step.name]],
            )
            for step in steps
        }
        model = replace(model, name=str(at[iterations.train.name] / "model"), revision=None)


def check_iteration(children: Mapping[str, Child], train: str, check_train: Callable[[Any], object]) -> None:
    """Refuse what the later children would, before the earlier ones have worked for hours.

    Args:
        children: of the first iteration.
        train: the name of its last step.
        check_train: checks the options of that one.

    Raises:
        UserError: naming the child.
    """
    sample, score, select, last = (
        structured(children[name].invocation.schema, children[name].invocation.config)
        for name in ("sample", "score", "select", train)
    )
    responses = sampling_rules(sample).n
    if select.n is not None and select.n > responses:
        raise UserError(f"select.n={select.n} must be at most sample.n={responses}")
    check_language_model(sample.model)
    check_reward_model(score.model, "reward")
    checks: dict[str, Callable[[], SelectionRules | object]] = {
        "score": partial(check_score, score),
        "select": partial(selection_rules, select),
        train: partial(check_train, last),
    }
    for name, check in checks.items():
        with naming(children[name].name):
            check()


def prompts_file(folder: Path, number: int) -> Path:
    """Return where an iteration's prompts are."""
    return folder / f"prompts-{number}.jsonl"


def write_prompts(folder: Path, number: int, prompts: Sequence[list[Message]]) -> None:
    """Write an iteration's prompts."""
    write_rows(prompts_file(folder, number), ({"prompt": prompt} for prompt in prompts))


def report_rewards(rewards: Mapping[str, Sequence[float]], run_dir: Path) -> None:
    """Print and draw mean rewards by iteration.

    Args:
        rewards: of what -> one for each iteration.
        run_dir: the plot goes to ``plots/rewards.png`` in it.
    """
    table = Table("iteration", *(f"mean reward of {name}" for name in rewards), header_style="bold")
    steps = list(range(1, len(next(iter(rewards.values()))) + 1))
    for number, row in zip(steps, zip(*rewards.values(), strict=True), strict=True):
        table.add_row(str(number), *(f"{value:.4f}" for value in row))
    result_console().print(table)
    curves = {name: MeanCurve(steps, list(values), list(values), list(values)) for name, values in rewards.items()}
    comparison({"mean reward": curves}, run_dir / "plots" / "rewards.png", across="iteration")
