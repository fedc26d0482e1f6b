"""The ``radpo`` command: verbs and what they stand for."""

from __future__ import annotations

from collections.abc import Sequence

from reproalign.common.command.app import App, run
from reproalign.common.invocation import Verb
from reproalign.common.verbs import EVALUATE_SUITE, JUDGE

RENAMED = {
    "loss.second_form": "loss.alpha=0.5 is the second form, loss.alpha=null the first",
    "loss.measure": "loss.risk",
    "loss.confidence_level": "loss.risk.level",
    "loss.coefficient": ("loss.risk.mu", "loss.risk.kappa"),
    "loss.is_split_risk_ratio": "loss.risk.split",
    "loss.is_cal_risk_distribution_logps": "loss.risk.replace_logps",
    "loss.tokenwise_KL": "loss.tokenwise_kl",
    "loss.KL_coef": "loss.kl_coef",
    "data.max_eval_rows": "data.max_rows",  # of ``sample``; it is a key of ``train`` and ``evaluate``
}
APP = App(
    command="radpo",
    package="reproalign.radpo",
    distribution="reproalign-radpo",
    title="Risk-aware Direct Preference Optimization (arXiv 2505.20359)",
    verbs=(
        Verb(
            "train",
            "train with any of the losses (loss=NAME); sharded over all GPUs (launch=auto)",
            "train",
            "reproalign.radpo.config:TrainConfig",
            "reproalign.radpo.train:train",
            launchable=True,
            check="reproalign.radpo.train:check_options",
            previewed=True,
        ),
        Verb(
            "evaluate",
            "measure accuracy, margins, sequential KL and risk ratio of a policy on held-out pairs",
            "evaluate",
            "reproalign.radpo.config:EvaluateConfig",
            "reproalign.radpo.evaluate:evaluate",
        ),
        EVALUATE_SUITE,
        Verb(
            "sample",
            "sample responses to the prompts of a data set into AlpacaEval's file format",
            "sample",
            "reproalign.radpo.config:SampleConfig",
            "reproalign.radpo.sample:sample",
            launchable=True,
        ),
        Verb(
            "pairs",
            "make pairs: continue the beginnings of texts, score by a classifier, best against worst (IMDb)",
            "pairs",
            "reproalign.radpo.config:PairsConfig",
            "reproalign.radpo.pairs:pairs",
            launchable=True,
        ),
        JUDGE,
    ),
    more=(
        (
            "plot",
            "draw the paper's figures from several runs: sequential KL and reward accuracy over steps or against alpha",
            "reproalign.radpo.plot:plot_command",
        ),
        (
            "outcomes",
            "draw wins, ties and losses of judged models as stacked bars, with a sign test (the paper's Figure 14)",
            "reproalign.radpo.outcomes:outcomes_command",
        ),
        (
            "leaderboard",
            "print the win rates that alpaca_eval wrote, beside the paper's Table 1",
            "reproalign.radpo.leaderboard:leaderboard_command",
        ),
    ),
    renamed=RENAMED,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out ``radpo …``."""
    return run(APP, argv)
