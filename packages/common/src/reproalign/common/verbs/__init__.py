"""Ready-made verbs that the papers' commands list."""

from __future__ import annotations

from reproalign.common.invocation import Verb

EVALUATE_SUITE = Verb(
    name="evaluate",
    help="run a suite of lm-eval's tasks on a model: ama, dtm, or any tasks by name",
    config_name="evaluate_suite",
    schema="reproalign.common.evaluation.suites.config:EvaluateSuiteConfig",
    target="reproalign.common.verbs.evaluate:evaluate_suite",
    launchable=True,
    when="suite",
    dry_run="reproalign.common.verbs.evaluate:preview_suite",
)

JUDGE = Verb(
    "judge",
    "compare the responses in two AlpacaEval files by a language model or PairRM, in both orders; win rate",
    "judge",
    "reproalign.common.judging.config:JudgeConfig",
    "reproalign.common.verbs.judge:judge",
)

PERPLEXITY = Verb(
    "perplexity",
    "measure the perplexity of given answers to given prompts under a language model",
    "perplexity",
    "reproalign.common.verbs.config:PerplexityConfig",
    "reproalign.common.verbs.perplexity:perplexity",
    launchable=True,
)

MT_BENCH = Verb(
    "mt-bench",
    "answer MT-Bench's questions of two turns, have a language model grade them, and report the scores",
    "mt_bench",
    "reproalign.common.verbs.mt_bench_config:MTBenchConfig",
    "reproalign.common.verbs.mt_bench:mt_bench",
)

# Sample responses, score them, select the best, fine-tune on these.
REJECTION_SAMPLING = (
    Verb(
        "sample",
        "sample n responses of a language model to each prompt",
        "sample",
        "reproalign.common.verbs.config:SampleConfig",
        "reproalign.common.verbs.sample:sample",
        launchable=True,
    ),
    Verb(
        "score",
        "score sampled responses with a reward model",
        "score",
        "reproalign.common.verbs.config:ScoreConfig",
        "reproalign.common.verbs.score:score",
    ),
    Verb(
        "select",
        "keep the best response to each prompt, or the best and the worst",
        "select",
        "reproalign.common.verbs.config:SelectConfig",
        "reproalign.common.verbs.select:select",
    ),
    Verb(
        "align",
        "fine-tune a language model on the selected responses",
        "align",
        "reproalign.common.verbs.config:AlignConfig",
        "reproalign.common.verbs.align:align",
        launchable=True,
        previewed=True,
    ),
)

RAFT = Verb(
    "raft",
    "sample, score, select and align in one command, in one or more iterations",
    "raft",
    "reproalign.common.verbs.config:RaftConfig",
    "reproalign.common.verbs.raft:raft",
    dry_run="reproalign.common.verbs.raft:show_plan",
)

MERGE = Verb(
    "merge",
    "combine the weights of models or adapters: average, SLERP, task arithmetic, TIES, DARE, Fisher, RegMean",
    "merge",
    "reproalign.common.merging.config:MergeConfig",
    "reproalign.common.verbs.merge:merge",
    positional="plan",
    dry_run="reproalign.common.verbs.merge:dry_run",
)
