"""The ``ama`` command: verbs and what they stand for."""

from __future__ import annotations

from collections.abc import Sequence

from reproalign.common.command.app import App, run
from reproalign.common.invocation import Verb
from reproalign.common.verbs import EVALUATE_SUITE, JUDGE, REJECTION_SAMPLING

SAMPLE, SCORE, SELECT = (verb for verb in REJECTION_SAMPLING if verb.name != "align")
DATA = Verb(
    "data",
    "write HH-RLHF (or rows like it) as prompts, dialogues and pairs, divided as the paper's data are",
    "data",
    "reproalign.ama.align.raft_config:PreferenceDataConfig",
    "reproalign.ama.align.data:data",
)
REWARD = Verb(
    "reward",
    "train the reward model on preference pairs",
    "reward",
    "reproalign.ama.align.config:RewardConfig",
    "reproalign.ama.align.reward:reward",
    launchable=True,
    previewed=True,
    check="reproalign.ama.align.reward:check_options",
)
SFT = Verb(
    "align sft",
    "fine-tune on dialogues or selected responses, with a penalty, replay, averaging or LoRA if asked",
    "align_sft",
    "reproalign.ama.align.config:SFTConfig",
    "reproalign.ama.align.sft:sft",
    launchable=True,
    previewed=True,
    check="reproalign.ama.align.sft_options:check_options",
)
RAFT = Verb(
    "align raft",
    "align by rejection sampling: sample, score, select and fine-tune, iteration by iteration",
    "align_raft",
    "reproalign.ama.align.raft_config:RaftConfig",
    "reproalign.ama.align.raft:raft",
    dry_run="reproalign.ama.align.raft:show_plan",
)
DPO = Verb(
    "align dpo",
    "align by direct preference optimisation on pairs",
    "align_dpo",
    "reproalign.ama.align.config:DPOConfig",
    "reproalign.ama.align.dpo:dpo",
    launchable=True,
    previewed=True,
    check="reproalign.ama.align.dpo:check_options",
)
PPO = Verb(
    "align ppo",
    "align by proximal policy optimisation against a reward model, with a KL penalty",
    "align_ppo",
    "reproalign.ama.align.ppo_config:PPOConfig",
    "reproalign.ama.align.ppo:ppo",
    launchable=True,
    check="reproalign.ama.align.ppo:check_ppo",
)
COLLECT = Verb(
    "collect",
    "collect D_θ: responses of the aligned model to training prompts, the best-rewarded, a seeded draw of them",
    "collect",
    "reproalign.ama.adapt.collect_config:CollectConfig",
    "reproalign.ama.adapt.collect:collect",
    dry_run="reproalign.ama.adapt.collect:show_plan",
)
ADAPT = Verb(
    "adapt",
    "learn the ratio of each part on D_θ (HMA), on labelled text (AdaMerging), or by the reward itself",
    "adapt",
    "reproalign.ama.adapt.config:AdaptConfig",
    "reproalign.ama.adapt.verb:adapt",
    launchable=True,
    check="reproalign.ama.adapt.settings:check_options",
    dry_run="reproalign.ama.adapt.verb:dry_run",
)
AVERAGE = Verb(
    "average",
    "average two models: one ratio (MA), a ratio for each part, a pattern, learned ratios (HMA); or graft",
    "average",
    "reproalign.ama.average.config:AverageConfig",
    "reproalign.ama.average.verb:average",
    dry_run="reproalign.ama.average.verb:dry_run",
)
EVALUATE = Verb(
    "evaluate",
    "measure the mean reward on held-out prompts and the perplexity; with suite=ama: the paper's tasks",
    "evaluate",
    "reproalign.ama.frontier.config:EvaluateConfig",
    "reproalign.ama.frontier.evaluate:evaluate",
    launchable=True,
    check="reproalign.ama.frontier.evaluate:check_options",
)
FRONTIER = Verb(
    "frontier",
    "sweep ratios, parts, patterns and baselines, evaluate each once, draw reward against tasks",
    "frontier",
    "reproalign.ama.frontier.config:FrontierConfig",
    "reproalign.ama.frontier.verb:frontier",
    dry_run="reproalign.ama.frontier.verb:show_plan",
)
STUDY = (
    Verb(
        "study claims",
        "check the claims C1-C14 of the paper on its own numbers, and on a set of results",
        "study_claims",
        "reproalign.ama.study.config:ClaimsConfig",
        "reproalign.ama.study.claims:claims",
    ),
    Verb(
        "study tax",
        "print what alignment gains and loses in per cent, as in the paper's first figure and first table",
        "study_tax",
        "reproalign.ama.study.config:TaxConfig",
        "reproalign.ama.study.tax:tax",
    ),
    Verb(
        "study trajectory",
        "draw reward and tasks along a training's checkpoints, or the fronts of several algorithms over each other",
        "study_trajectory",
        "reproalign.ama.study.config:TrajectoryConfig",
        "reproalign.ama.study.trajectory:trajectory",
    ),
    Verb(
        "study proposition",
        "simulate Proposition 5.1: averaging outputs and averaging weights, against the closed forms",
        "study_proposition",
        "reproalign.ama.study.config:PropositionConfig",
        "reproalign.ama.study.proposition:proposition",
    ),
)

APP = App(
    command="ama",
    package="reproalign.ama",
    distribution="reproalign-ama",
    title="Mitigating the Alignment Tax of RLHF: model averaging (arXiv 2309.06256)",
    verbs=(
        DATA,
        REWARD,
        SFT,
        RAFT,
        DPO,
        PPO,
        SAMPLE,
        SCORE,
        SELECT,
        COLLECT,
        ADAPT,
        AVERAGE,
        EVALUATE,
        EVALUATE_SUITE,
        JUDGE,
        FRONTIER,
        *STUDY,
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out ``ama …``."""
    return run(APP, argv)
