"""The reward of an average, by two child runs: ``average`` makes the model, ``evaluate`` samples from it and scores."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from reproalign.ama.adapt.config import AdaptConfig
from reproalign.ama.adapt.rows import PLAIN
from reproalign.ama.cli import AVERAGE, EVALUATE
from reproalign.ama.ratios_file import NAME, Ratios, write_ratios
from reproalign.common.errors import ReportedError
from reproalign.common.invocation import Invocation
from reproalign.common.launch.children import Child, given_words, plan_child, run_child
from reproalign.common.options.words import as_word, section_words
from reproalign.common.records.folder import read_record
from reproalign.common.records.run import Run

OWNED_AVERAGE = (
    *("pre", "post", "ratios", "variant", "output_dir", "method", "alpha", "alpha_on", "parts", "only", "pattern"),
    *("name", "tensors", "head", "fraction", "checkpoints", "decay", "reset_every"),
)
OWNED_EVALUATE = ("model", "reward", "prompts", "seed", "variant", "output_dir")


@dataclass(frozen=True)
class Measuring:
    """Averages at given ratios and measures their reward.

    Every model is asked with the same seed, so that differences are not those of the draws.

    Attributes:
        config: of the run.
        invocation: of the run, the children's parent.
    """

    config: AdaptConfig
    invocation: Invocation

    def plan(self, name: str) -> tuple[Child, Child]:
        """Compose the two runs of a candidate.

        Raises:
            UserError: for anything wrong in ``average.*`` or ``evaluate.*``.
        """
        config, folder = self.config, Path(self.config.output_dir)
        words = [
            as_word("pre", config.pre),
            as_word("post", config.post),
            as_word("ratios", str(folder / f"{name}-{NAME}")),
            *([as_word("allow", config.allow)] if config.allow else []),
            *given_words("average", config.average, OWNED_AVERAGE, by="adapt"),
        ]
        average = plan_child(self.invocation, f"{name}-average", AVERAGE, words)
        words = [
            as_word("reward", config.reward),
            as_word("prompts", config.prompts),
            as_word("seed", config.seed),
            as_word("variant", config.variant),
            *section_words("model", replace(config.model, name=str(folder / average.name / "model"))),
            *([] if config.layout == PLAIN or "layout" in config.evaluate else [as_word("layout", config.layout)]),
            *given_words("evaluate", config.evaluate, OWNED_EVALUATE, by="adapt"),
        ]
        return average, plan_child(self.invocation, f"{name}-evaluate", EVALUATE, words)

    def reward(self, run: Run, name: str, ratios: Ratios) -> float:
        """Return the mean reward of the average at ``ratios``; what was finished before is not run again.

        The averaged model is removed once it was evaluated.

        Raises:
            ReportedError: if a child failed, or measured no reward.
        """
        average, evaluate = self.plan(name)
        write_ratios(run.dir / f"{name}-{NAME}", ratios)
        made = run_child(run, average)
        folder = run_child(run, evaluate)
        shutil.rmtree(made / "model", ignore_errors=True)
        reward = read_record(folder)["metrics"].get("reward")
        if not isinstance(reward, int | float):
            raise ReportedError(f"{evaluate.name} has no reward in its metrics (its record: {folder})")
        return float(reward)
