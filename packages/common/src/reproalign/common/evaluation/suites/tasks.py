"""Tasks that lm-eval lacks, or has only with metrics that it downloads from the Hub when it is used.

``humaneval``, ``mbpp`` and ``squadv2`` are lm-eval's own experiments (versions, prompts and stops of 0.4.13) with
metrics of ours. ``race_2023`` is ``race`` before version 3.0 of May 2026.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import exp
from typing import Any

from reproalign.common.evaluation.suites.programs import passes
from reproalign.common.evaluation.suites.squad import best_with_threshold, gain, scores

RUNS_CODE = ("humaneval", "mbpp")
_MBPP_EXAMPLES = (2, 3, 4)  # lm-eval's choice from the split "prompt"

Doc = Mapping[str, Any]


def humaneval(timeout: float, memory: float) -> dict[str, Any]:
    """Return lm-eval's ``humaneval`` (Chen et al., 2021, arXiv 2107.03374): one greedy completion, pass@1."""
    return {
        "task": "humaneval",
        "dataset_path": "openai/openai_humaneval",
        "test_split": "test",
        "output_type": "generate_until",
        "unsafe_code": True,
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{test}}\ncheck({{entry_point}})",
        "generation_kwargs": {
            "until": ["\nclass", "\ndef", "\n#", "\nif", "\nprint"],
            "max_gen_toks": 1024,
            "do_sample": False,
        },
        "num_fewshot": 0,
        "process_results": partial(_humaneval_result, timeout=timeout, memory=memory),
        "metric_list": [{"metric": "pass@1", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }


def mbpp(timeout: float, memory: float) -> dict[str, Any]:
    """Return lm-eval's ``mbpp`` (Austin et al., 2021, arXiv 2108.07732): 3 examples and asserts, greedy, pass@1."""
    return {
        "task": "mbpp",
        "dataset_path": "google-research-datasets/mbpp",
        "dataset_name": "full",
        "test_split": "test",
        "fewshot_split": "prompt",
        "output_type": "generate_until",
        "unsafe_code": True,
        "doc_to_text": _mbpp_prompt,
        "doc_to_target": _mbpp_tests,
        "target_delimiter": "",
        "generation_kwargs": {"until": ["[DONE]"], "do_sample": False},
        "num_fewshot": 3,
        "fewshot_config": {"sampler": "first_n", "process_docs": _mbpp_examples, "doc_to_target": "{{code}}\n[DONE]"},
        "process_results": partial(_mbpp_result, timeout=timeout, memory=memory),
        "metric_list": [{"metric": "pass@1", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }


def race_2023() -> dict[str, Any]:
    """Return ``race`` (Lai et al., 2017, arXiv 1704.04683) as lm-eval rendered it from 2021 to version 2.

    Of an earlier question with a blank in its end, the prompt shows the blank and the answer without what stands before
    them. Version 3.0 repaired this, so numbers from before May 2026 need the old rendering.
    """
    return {
        "task": "race_2023",
        "dataset_path": "EleutherAI/race",
        "dataset_name": "high",
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": _race_prompt,
        "doc_to_target": _race_target,
        "doc_to_choice": _race_choices,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 2.0},
    }


def squadv2() -> dict[str, Any]:
    """Return what :func:`squad_task` is made from: lm-eval's ``squadv2`` (version 3)."""
    return {
        "task": "squadv2",
        "dataset_path": "lighteval/squad_v2",
        "training_split": "train",
        "validation_split": "validation",
        "metadata": {"version": 3},
    }


def own_tasks(timeout: float, memory: float) -> dict[str, Callable[[], dict[str, Any]]]:
    """Map the names of the tasks of this module to what makes their configuration."""
    return {
        "humaneval": partial(humaneval, timeout, memory),
        "mbpp": partial(mbpp, timeout, memory),
        "race_2023": race_2023,
        "squadv2": squadv2,
    }


def build(config: dict[str, Any]) -> Any:
    """Return lm-eval's task object of a configuration of this module."""
    from lm_eval.api.task import ConfigurableTask

    return squad_task(config) if config["task"] == "squadv2" else ConfigurableTask(config=config)


def squad_task(config: dict[str, Any]) -> Any:
    """Return lm-eval's ``squadv2`` with the official scores computed here.

    lm-eval's class downloads its metric at the end of the run, takes no other data set and has no standard errors. Its
    prompts and requests are kept. All scores are in per cent; ``best_f1`` and ``best_exact`` choose the threshold on
    the evaluated questions themselves.
    """
    from lm_eval.api.metrics import mean
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks.squadv2.task import SQuAD2

    class LocalSQuAD2(SQuAD2):  # type: ignore[misc]
        def __init__(self) -> None:
            ConfigurableTask.__init__(self, config=config)

        def has_training_docs(self) -> bool:
            return bool(self.config.training_split)

        def process_results(self, doc: Doc, results: Sequence[Any]) -> dict[str, Any]:
            answer, (logprob, _) = results
            return squad_result(answer, exp(logprob), doc["answers"]["text"])

        def aggregation(self) -> dict[str, Any]:
            kinds = ("", "HasAns_", "NoAns_")
            means = {f"{kind}{name}": mean for kind in kinds for name in ("exact", "f1")}
            return {**means, "best_exact": best_with_threshold, "best_f1": best_with_threshold}

        def higher_is_better(self) -> dict[str, bool]:
            return dict.fromkeys(self.aggregation(), True)

    return LocalSQuAD2()


def squad_result(answer: str, no_answer: float, references: Sequence[str]) -> dict[str, Any]:
    """Return the scores of one answer; ``no_answer`` is the probability that the model gives to "unanswerable"."""
    exact, f1 = scores(answer, references)
    answerable = bool(references)
    kind = "HasAns" if answerable else "NoAns"
    return {
        "exact": 100 * exact,
        "f1": 100 * f1,
        f"{kind}_exact": 100 * exact,
        f"{kind}_f1": 100 * f1,
        "best_exact": (gain(exact, answer, answerable), no_answer, answerable),
        "best_f1": (gain(f1, answer, answerable), no_answer, answerable),
    }


def _humaneval_result(doc: Doc, results: Sequence[str], *, timeout: float, memory: float) -> dict[str, float]:
    program = f"{doc['prompt']}{results[0]}\n{doc['test']}\ncheck({doc['entry_point']})"
    return {"pass@1": float(passes(program, timeout=timeout, memory=memory))}


def _mbpp_result(doc: Doc, results: Sequence[str], *, timeout: float, memory: float) -> dict[str, float]:
    return {"pass@1": float(passes(f"{results[0]}\n{_mbpp_tests(doc)}", timeout=timeout, memory=memory))}


def _mbpp_tests(doc: Doc) -> str:
    return "\n".join(doc["test_list"][:3])


def _mbpp_prompt(doc: Doc) -> str:
    return (
        f"You are an expert Python programmer, and here is your task: {doc['text']} Your code should pass these tests:"
        f"\n\n{_mbpp_tests(doc)}\n[BEGIN]\n"
    )


def _mbpp_examples(docs: Any) -> list[Doc]:
    return [doc for doc in docs if doc["task_id"] in _MBPP_EXAMPLES]


def _race_problems(doc: Doc) -> list[dict[str, Any]]:
    return list(ast.literal_eval(doc["problems"]))


def _race_answer(problem: Doc) -> int:
    return "ABCD".index(problem["answer"])


def _race_prompt(doc: Doc) -> str:
    *earlier, last = _race_problems(doc)
    text = f"Article: {doc['article']}\n\n"
    for problem in earlier:
        question, answer = problem["question"], problem["options"][_race_answer(problem)]
        if question.endswith("  _  ."):
            text += f" _  .{answer}\n"
        else:
            text += f"Question: {question}\nAnswer: {answer}\n"
    return text + str(last["question"])


def _race_choices(doc: Doc) -> list[str]:
    return list(_race_problems(doc)[-1]["options"][:4])


def _race_target(doc: Doc) -> int:
    return _race_answer(_race_problems(doc)[-1])
