"""The ``mmpo`` command: verbs and what they stand for."""

from __future__ import annotations

from collections.abc import Sequence

from reproalign.common.command.app import App, run
from reproalign.common.invocation import Verb
from reproalign.common.verbs import EVALUATE_SUITE, MT_BENCH

RENAMED = {"loss.type": "loss"}
APP = App(
    command="mmpo",
    package="reproalign.mmpo",
    distribution="reproalign-mmpo",
    title="Margin Matching Preference Optimization (arXiv 2410.03145)",
    verbs=(
        Verb(
            "sft",
            "fine-tune a base model on dialogues",
            "sft",
            "reproalign.mmpo.config:SFTRunConfig",
            "reproalign.mmpo.sft:sft",
            launchable=True,
            previewed=True,
        ),
        Verb(
            "train",
            "train a policy on pairs with soft targets (MMPO; DPO with target.gamma=null)",
            "train",
            "reproalign.mmpo.config:PreferenceConfig",
            "reproalign.mmpo.train:train",
            launchable=True,
            check="reproalign.mmpo.train:check_options",
            previewed=True,
        ),
        Verb(
            "reward",
            "train a reward model on pairs with soft targets",
            "reward",
            "reproalign.mmpo.config:RewardConfig",
            "reproalign.mmpo.train:reward",
            launchable=True,
            check="reproalign.mmpo.train:check_reward_options",
            previewed=True,
        ),
        Verb(
            "evaluate",
            "measure accuracy, margins, calibration; RewardBench-format files",
            "evaluate",
            "reproalign.mmpo.config:EvaluateConfig",
            "reproalign.mmpo.evaluate:evaluate",
        ),
        EVALUATE_SUITE,
        Verb(
            "best-of-n",
            "sample candidates, score them with a reward model, keep the best",
            "best_of_n",
            "reproalign.mmpo.best_of_n_config:BestOfNConfig",
            "reproalign.mmpo.best_of_n:best_of_n_run",
        ),
        MT_BENCH,
    ),
    more=(
        (
            "translate",
            "turn a released recipe and its flags into this command's words",
            "reproalign.mmpo.released_cli:translate_command",
        ),
    ),
    renamed=RENAMED,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out ``mmpo …``."""
    return run(APP, argv)
