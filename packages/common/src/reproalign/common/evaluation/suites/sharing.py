"""The same worked examples for any number of processes."""

from __future__ import annotations

from typing import Any


def share_examples(task: Any, rank: int, processes: int) -> None:
    """Make a task draw for each question the examples that one process alone would draw for it.

    lm-eval seeds every process alike, and each draws for its own share of the questions, so that numbers with drawn
    examples depend on how many processes there are. Here each one also draws, and discards, for the questions of the
    others: questions are dealt in turns.
    """
    from lm_eval.api.samplers import ContextSampler

    if processes == 1 or not hasattr(task, "sampler"):
        return
    inner = task.sampler

    class InTurns(ContextSampler):  # type: ignore[misc]
        def __init__(self) -> None:
            self.inner, self.skip = inner, rank

        def sample(self, n: int, eval_doc: Any = None, **options: Any) -> Any:
            for _ in range(self.skip):
                self.inner.sample(n, eval_doc=eval_doc, **options)
            self.skip = processes - 1
            return self.inner.sample(n, eval_doc=eval_doc, **options)

        def set_rnd(self, rnd: int | None) -> InTurns:
            self.inner.set_rnd(rnd)
            self.skip = rank
            return self

    task.sampler = InTurns()
