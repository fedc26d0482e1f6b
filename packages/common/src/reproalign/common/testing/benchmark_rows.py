"""Rows made up in the schemas of public benchmarks, enough to run lm-eval's tasks on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def _arc(n: int) -> Row:
    words = ["four", "five", "six", "seven"]
    choices = {"text": words, "label": ["A", "B", "C", "D"]}
    return {"id": f"q{n}", "question": f"two plus two plus {n} is?", "choices": choices, "answerKey": "ABCD"[n % 4]}


def _openbookqa(n: int) -> Row:
    row = _arc(n)
    return {"id": row["id"], "question_stem": row["question"], "choices": row["choices"], "answerKey": row["answerKey"]}


def _piqa(n: int) -> Row:
    return {"goal": f"bake bread number {n}", "sol1": "mix flour and water, then bake", "sol2": "sleep", "label": n % 2}


def _boolq(n: int) -> Row:
    return {"question": "does the dog sleep", "passage": f"the dog sleeps {n} hours", "idx": n, "label": n % 2}


def _race(n: int) -> Row:
    problems = [
        {"question": f"The dog is {n}  _  .", "answer": "B", "options": ["red", "lazy", "blue", "green"]},
        {"question": "Who jumps?", "answer": "A", "options": ["the fox", "the dog", "the sun", "bread"]},
        {"question": "The fox is  _  .", "answer": "ABCD"[n % 4], "options": ["quick", "green", "blue", "red"]},
    ]
    return {"article": "the quick brown fox jumps over the lazy dog", "problems": str(problems)}


def _squad(n: int) -> Row:
    answers = {"text": ["the dog"], "answer_start": [0]} if n % 2 else {"text": [], "answer_start": []}
    return {
        "id": f"id{n}",
        "title": "Dogs",
        "context": "the dog sleeps in the sun",
        "question": f"who sleeps {n}?",
        "answers": answers,
    }


def _drop(n: int) -> Row:
    date = {"day": "", "month": "", "year": ""}
    answer = {"number": str(n), "date": date, "spans": [], "worker_id": "", "hit_id": ""}
    validated = {key: [value] for key, value in answer.items()}
    return {
        "section_id": "s",
        "query_id": f"q{n}",
        "passage": f"the dog sleeps {n} hours.",
        "question": "how many hours?",
        "answer": answer,
        "validated_answers": validated,
    }


def _wmt(n: int) -> Row:
    return {"translation": {"fr": f"le chien dort {n} heures", "en": f"the dog sleeps {n} hours"}}


def _gsm8k(n: int) -> Row:
    return {"question": f"two plus {n} is?", "answer": f"It is <<2+{n}={n + 2}>>.\n#### {n + 2}"}


def _mmlu(n: int) -> Row:
    return {"question": f"two plus {n}?", "subject": "s", "choices": ["four", "five", "six", "seven"], "answer": n % 4}


def _bbh(n: int) -> Row:
    return {"input": f"True and {n} is", "target": "(A)"}


def _truthfulqa(n: int) -> Row:
    targets = {"choices": ["yes", "no", "maybe"], "labels": [1, 0, 0]}
    return {"question": f"is {n} a number?", "mc1_targets": targets, "mc2_targets": targets}


def _humaneval(n: int) -> Row:
    return {
        "task_id": f"HumanEval/{n}",
        "prompt": f'def add{n}(a, b):\n    """Add two numbers."""\n',
        "canonical_solution": "    return a + b\n",
        "test": f"def check(candidate):\n    assert candidate(1, {n}) == {n + 1}\n",
        "entry_point": f"add{n}",
    }


def _mbpp(n: int) -> Row:
    return {
        "task_id": n,
        "text": f"Write a function to add {n}.",
        "code": f"def add(a):\r\n  return a + {n}",
        "test_list": [f"assert add({k}) == {k + n}" for k in range(3)],
        "test_setup_code": "",
        "challenge_test_list": [],
    }


# Benchmark -> what makes a row, and the splits that lm-eval's task reads.
BENCHMARKS: dict[str, tuple[Callable[[int], Row], tuple[str, ...]]] = {
    "arc_easy": (_arc, ("test",)),
    "arc_challenge": (_arc, ("test",)),
    "openbookqa": (_openbookqa, ("test",)),
    "piqa": (_piqa, ("validation", "train")),
    "boolq": (_boolq, ("validation",)),
    "race": (_race, ("test",)),
    "squad": (_squad, ("validation",)),
    "drop": (_drop, ("validation",)),
    "wmt14_fr_en": (_wmt, ("test",)),
    "gsm8k": (_gsm8k, ("test", "train")),
    "truthfulqa_mc1": (_truthfulqa, ("validation",)),
    "humaneval": (_humaneval, ("test",)),
    "mbpp": (_mbpp, ("test", "prompt")),
    "mmlu": (_mmlu, ("test", "dev")),
    "bbh": (_bbh, ("test",)),
}


def benchmark_rows(name: str, count: int) -> list[Row]:
    """Return ``count`` rows of a benchmark."""
    make, _ = BENCHMARKS[name]
    return [make(number) for number in range(1, count + 1)]


def write_rows(path: Path, rows: list[Row]) -> Path:
    """Write rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_benchmark(folder: Path, name: str, count: int = 6) -> Path:
    """Write a file for each split that a benchmark's task reads, and return their folder."""
    _, splits = BENCHMARKS[name]
    for split in splits:
        write_rows(folder / name / f"{split}.jsonl", benchmark_rows(name, count))
    return folder / name
