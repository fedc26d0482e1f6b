"""The ``dtm`` command: verbs and what they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from reproalign.common.command.app import App, run
from reproalign.common.invocation import Verb
from reproalign.common.verbs import EVALUATE_SUITE

DISPERSE = Verb(
    "disperse",
    "split instruction rows into clusters: at random, or by k-means on sentence embeddings",
    "disperse",
    "reproalign.dtm.disperse.config:DisperseConfig",
    "reproalign.dtm.disperse.verb:disperse",
    launchable=True,
    dry_run="reproalign.dtm.disperse.verb:dry_run",
)
TRAIN = Verb(
    "train",
    "train one model: on one cluster, on all rows (vanilla), or a baseline; clusters=all: a sub-model on each",
    "train",
    "reproalign.dtm.train.config:TrainConfig",
    "reproalign.dtm.train.verb:train",
    launchable=True,
    check="reproalign.dtm.train.verb:check_options",
    previewed=True,
)
TRAIN_EACH = Verb(
    "train",
    "train a sub-model on each cluster, each a run of its own",
    "train_each",
    "reproalign.dtm.train.config:TrainEachConfig",
    "reproalign.dtm.train.each:train_each",
    when="clusters",
    dry_run="reproalign.dtm.train.each:show_plan",
)
TRAIN_SOUP = replace(
    TRAIN_EACH,
    help="train a model with each of several settings, each a run of its own: the ingredients of a uniform soup",
    when="variations",
)
MERGE = Verb(
    "merge",
    "merge sub-models: factor or delta average, task arithmetic, TIES, DARE, Fisher, RegMean; or a logit ensemble",
    "merge",
    "reproalign.dtm.merge.config:MergeConfig",
    "reproalign.dtm.merge.verb:merge",
    positional="models",
    dry_run="reproalign.dtm.merge.verb:dry_run",
)
STATISTICS = Verb(
    "statistics",
    "measure a model's Fisher information or Gram matrices on instruction rows, for Fisher merging, RegMean and EWC",
    "statistics",
    "reproalign.dtm.merge.config:StatisticsConfig",
    "reproalign.dtm.merge.statistics:statistics",
)
RUN = Verb(
    "run",
    "disperse, train, merge and evaluate in one command, with the vanilla model beside",
    "run",
    "reproalign.dtm.config:PipelineConfig",
    "reproalign.dtm.run:run_all",
    dry_run="reproalign.dtm.run:show_plan",
)
EVALUATE = Verb(
    "evaluate",
    "measure the loss on held-out rows, per source; with suite=dtm: the paper's nine benchmarks",
    "evaluate",
    "reproalign.dtm.study.config:EvaluateConfig",
    "reproalign.dtm.study.evaluate:evaluate",
    launchable=True,
)
STUDY = (
    Verb(
        "study curves",
        "draw scores and held-out loss against the fraction of the data, the published curves beside",
        "study_curves",
        "reproalign.dtm.study.config:CurvesConfig",
        "reproalign.dtm.study.curves:curves",
        dry_run="reproalign.dtm.study.curves:show_plan",
    ),
    Verb(
        "study gap",
        "compute how much faster the loss falls on training rows than on held-out ones, along the training",
        "study_gap",
        "reproalign.dtm.study.config:GapConfig",
        "reproalign.dtm.study.gap:gap",
    ),
    Verb(
        "study tokens",
        "list the tokens that lose most loss early in the training, and late",
        "study_tokens",
        "reproalign.dtm.study.config:TokensStudyConfig",
        "reproalign.dtm.study.learned:tokens",
    ),
    Verb(
        "study errors",
        "compare what the sub-models get wrong with what the merged model does",
        "study_errors",
        "reproalign.dtm.study.config:ErrorsConfig",
        "reproalign.dtm.study.errors:errors",
    ),
    Verb(
        "study claims",
        "check every claim of the paper on its own numbers, and on a set of results",
        "study_claims",
        "reproalign.dtm.study.config:ClaimsConfig",
        "reproalign.dtm.study.claims_verb:claims",
    ),
)

APP = App(
    command="dtm",
    package="reproalign.dtm",
    distribution="reproalign-dtm",
    title="Disperse-Then-Merge: instruction tuning on clusters, merged (arXiv 2405.13432)",
    verbs=(DISPERSE, TRAIN, TRAIN_EACH, TRAIN_SOUP, MERGE, STATISTICS, RUN, EVALUATE, EVALUATE_SUITE, *STUDY),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out ``dtm …``."""
    return run(APP, argv)
