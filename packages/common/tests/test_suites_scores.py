"""Scores that are computed here: SQuAD 2.0, programs of a model, and prompts that lm-eval has changed."""

from __future__ import annotations

import string
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reproalign.common.evaluation.suites.programs import passes
from reproalign.common.evaluation.suites.squad import best_with_threshold, gain, normalise, scores
from reproalign.common.evaluation.suites.tasks import build, humaneval, mbpp, own_tasks, squad_result
from reproalign.common.testing.benchmark_rows import benchmark_rows

WORDS = st.lists(st.sampled_from(["the", "dog", "Dog", "sun.", "a", "sleeps", ""]), max_size=6).map(" ".join)


@pytest.mark.parametrize(
    "prediction, references, expected",
    [
        ("The dog.", ["the dog"], (1, 1)),
        ("a lazy dog", ["dog"], (0, 2 / 3)),  # precision 1/2, recall 1
        ("dog dog", ["dog"], (0, 2 / 3)),  # as bags
        ("sun", ["the dog", "the sun"], (1, 1)),  # the best reference
        ("", ["dog"], (0, 0)),
        ("", [], (1, 1)),  # no answer
        ("the", [], (1, 1)),  # nothing is left of it
        ("dog", [], (0, 0)),
        ("dog", ["the"], (0, 0)),  # a reference without a word
    ],
)
def test_squad_scores(prediction, references, expected):
    assert scores(prediction, references) == pytest.approx(expected)


@given(WORDS, WORDS)
def test_squad_f1_is_the_harmonic_mean_of_precision_and_recall(prediction, reference):
    ours, gold = normalise(prediction).split(), normalise(reference).split()
    remaining = list(gold)
    common = sum(1 for word in ours if word in remaining and not remaining.remove(word))
    exact, f1 = scores(prediction, [reference])
    assert exact == (ours == gold)
    if common:
        precision, recall = common / len(ours), common / len(gold)
        assert f1 == pytest.approx(2 * precision * recall / (precision + recall))
    else:
        assert f1 == (ours == gold)


def test_articles_and_punctuation_do_not_count():
    assert normalise("  The, quick (brown) FOX -- an animal ") == "quick brown fox animal"
    assert normalise(string.punctuation) == ""


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.5, 1.0]), st.booleans()), min_size=1, max_size=7))
def test_the_best_threshold_is_the_best_of_all(questions):
    """Distinct probabilities: whoever abstains above a threshold answers the first k questions in their order."""
    items = [
        (gain(score, "text" if answered else "", has_answer), rank / 10, has_answer)
        for rank, (has_answer, score, answered) in enumerate(questions)
    ]
    totals = []
    for answered in range(len(items) + 1):
        totals.append(sum(added for added, _, _ in items[:answered]) + sum(not has for _, _, has in items))
    assert best_with_threshold(items[::-1]) == pytest.approx(100 * max(totals) / len(items))


def test_squad_scores_of_one_question():
    found = squad_result("the dog", 0.25, ["dog"])
    assert (found["f1"], found["exact"], found["HasAns_f1"]) == (100, 100, 100)
    assert "NoAns_f1" not in found
    assert found["best_f1"] == (1.0, 0.25, True)
    assert squad_result("dog", 0.5, [])["best_f1"] == (-1.0, 0.5, False)


@pytest.mark.parametrize(
    "program, passed",
    [
        ("assert 1 + 1 == 2", True),
        ("import math, collections\nassert math.gcd(4, 6) == 2", True),
        ("print('x' * 100000)\nassert True", True),
        ("assert 1 + 1 == 3", False),
        ("def f(:", False),
        ("exit()\nassert False", False),
        ("import os\nos._exit(0)", False),
        ("import sys\nsys.stdout = None\nraise SystemExit(0)", False),
        ("input()", False),
        ("while True: pass", False),
        ("import time\ntime.sleep(60)", False),
        ("x = bytearray(3 * 2**30)", False),
        ("open('big', 'wb').write(b'0' * 2**26)", False),
        ("if __name__ == '__main__': raise ValueError", True),
    ],
)
def test_a_program_passes_if_it_runs_to_its_end(program, passed):
    started = time.perf_counter()
    assert passes(program, timeout=3.0, memory=1.0) is passed
    assert time.perf_counter() - started < 30


def test_a_program_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert passes("open('left', 'w').write('x')", timeout=10.0, memory=1.0)
    assert list(tmp_path.iterdir()) == []


def test_reference_solutions_pass_their_tests():
    pytest.importorskip("lm_eval")
    (row,) = benchmark_rows("humaneval", 1)
    score = humaneval(10.0, 1.0)["process_results"]
    assert score(row, [row["canonical_solution"]]) == {"pass@1": 1}
    assert score(row, ["    return a - b\n"]) == {"pass@1": 0}
    (row,) = benchmark_rows("mbpp", 1)
    score = mbpp(10.0, 1.0)["process_results"]
    assert score(row, [row["code"]]) == {"pass@1": 1}
    assert score(row, ["def add(a): return a"]) == {"pass@1": 0}


def own_task(name: str, rows: dict[str, list]) -> object:
    from datasets import Dataset

    config = own_tasks(3.0, 1.0)[name]()
    return build(
        {**config, "custom_dataset": lambda **_: {key: Dataset.from_list(value) for key, value in rows.items()}}
    )


def test_prompts_of_mbpp_are_lm_evals():
    """Its examples are the rows 2, 3 and 4 of the split ``prompt``, each with three asserts."""
    pytest.importorskip("lm_eval")
    rows = benchmark_rows("mbpp", 6)
    task = own_task("mbpp", {"test": rows[5:], "prompt": rows})
    context = task.fewshot_context(rows[5], 3)
    turn = (
        "You are an expert Python programmer, and here is your task: Write a function to add {n}. Your code should "
        "pass these tests:\n\nassert add(0) == {n}\nassert add(1) == {m}\nassert add(2) == {k}\n[BEGIN]\n"
    )
    examples = [f"{turn.format(n=n, m=n + 1, k=n + 2)}def add(a):\r\n  return a + {n}\n[DONE]\n\n" for n in (2, 3, 4)]
    assert context == "".join(examples) + turn.format(n=6, m=7, k=8)


def test_race_as_it_was_rendered_before_version_3():
    """A question that ends in a blank: today the completed sentence, before that the blank and the answer."""
    pytest.importorskip("lm_eval")
    from lm_eval.tasks.race import preprocess_race

    (row,) = benchmark_rows("race", 1)
    task = own_task("race_2023", {"test": [row]})
    assert task.doc_to_text(row) == (
        "Article: the quick brown fox jumps over the lazy dog\n\n _  .lazy\n"
        "Question: Who jumps?\nAnswer: the fox\nThe fox is  _  ."
    )
    assert preprocess_race.doc_to_text(row) == task.doc_to_text(row).replace(" _  .lazy", "The dog is 1 lazy")
    assert task.doc_to_choice(row) == preprocess_race.doc_to_choice(row)
    assert task.doc_to_target(row) == preprocess_race.doc_to_target(row)
