"""Ready-made verbs that the papers' commands list."""

from __future__ import annotations

from reproalign.common.invocation import Verb

JUDGE = Verb(
    "judge",
    "compare the responses in two AlpacaEval files by a language model or PairRM, in both orders; win rate",
    "judge",
    "reproalign.common.judging.config:JudgeConfig",
    "reproalign.common.verbs.judge:judge",
)
