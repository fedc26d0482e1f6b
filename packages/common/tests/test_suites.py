"""Suites of lm-eval's tasks: numbers, what is stored with them, the cache, interruptions, several processes."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import GemmaConfig, GemmaForCausalLM

from reproalign.common.command.app import App, run
from reproalign.common.evaluation.suites.catalogue import defined_in, manager_of, subtasks
from reproalign.common.evaluation.suites.config import SuiteConfig
from reproalign.common.evaluation.suites.experiment import Seeds, Subject
from reproalign.common.evaluation.suites.prepare import prepare
from reproalign.common.evaluation.suites.run import plan, run_suite
from reproalign.common.evaluation.suites.tasks import own_tasks
from reproalign.common.models.tiny import save_tiny
from reproalign.common.models.tiny_tokenizers import tiny_tokenizer
from reproalign.common.options.load import load_object
from reproalign.common.testing import run_command
from reproalign.common.testing.benchmark_rows import benchmark_rows, write_benchmark, write_rows
from reproalign.common.verbs import EVALUATE_SUITE

lm_eval = pytest.importorskip("lm_eval")

APP = App("toy", "reproalign.common", "reproalign-common", "a paper", verbs=(EVALUATE_SUITE,))
SUITES = Path(load_object("reproalign.common.configs:__file__")).parent / "suite"
Evaluate = Callable[..., dict[str, Any]]


@pytest.fixture
def evaluate(tmp_path: Path) -> Evaluate:
    """Run ``toy evaluate`` on the tiny model and return its results."""

    def call(*words: str, folder: str = "run") -> dict[str, Any]:
        model = [] if any(word.startswith("model.name=") for word in words) else ["model=tiny"]
        assert run(APP, ["evaluate", *model, f"output_dir={tmp_path / folder}", *words]) == 0
        return json.loads((tmp_path / folder / "results.json").read_text(encoding="utf-8"))

    return call


def data(folder: Path, *names: str, count: int = 6) -> list[str]:
    """Rows of benchmarks, and the words that say where they are."""
    return [f"suite.data.{name}={write_benchmark(folder / 'data', name, count)}" for name in names]


def groups(folder: Path) -> list[str]:
    """Two subjects of MMLU and two tasks of BBH."""
    for subject, count in (("anatomy", 4), ("astronomy", 6)):
        write_rows(folder / "mmlu" / subject / "test.jsonl", benchmark_rows("mmlu", count))
        write_rows(folder / "mmlu" / subject / "dev.jsonl", benchmark_rows("mmlu", 5))
    for task in ("snarks", "navigate"):
        write_rows(folder / "bbh" / task / "test.jsonl", benchmark_rows("bbh", 2))
    return [f"suite.data.mmlu={folder / 'mmlu'}", f"suite.data.bbh={folder / 'bbh'}", "suite.missing_subtasks=skip"]


def suite_of(**fields: Any) -> SuiteConfig:
    return SuiteConfig(name="test", **fields)


def subject(**fields: Any) -> Subject:
    return Subject(**{"model": "m", "tokenizer": "t", "bos": False, **fields})


def test_ama_runs_on_local_rows(evaluate, tmp_path, capsys):
    names = ["arc_easy", "arc_challenge", "race", "piqa", "squad", "drop", "wmt14_fr_en", "boolq"]
    words = [*data(tmp_path, *names, count=3), f"suite.data.race_v3={tmp_path / 'data' / 'race'}"]
    short = "overrides.generation_kwargs={until: ['.'], max_gen_toks: 8}"
    words += [f"suite.benchmarks.{name}.{short}" for name in ("drop", "drop_2023", "wmt14_fr_en")]
    tasks = f"suite.tasks=[{','.join([*names, 'race_v3', 'drop_2023'])}]"
    found = evaluate("suite=ama", tasks, "suite.limit=2", "suite.samples=true", *words)
    rows = {row["name"]: row for row in found["rows"]}
    assert {*names, "race_v3", "drop_2023", "common_sense", "reading"} == rows.keys()
    accuracies = [rows[name]["value"] for name in ("arc_easy", "arc_challenge", "race", "piqa")]
    assert rows["common_sense"]["value"] == pytest.approx(sum(accuracies) / 4)
    assert all(0 <= row["value"] <= 100 for row in rows.values())
    assert {(row["questions"], row["of"]) for row in found["rows"] if row["kind"] == "benchmark"} == {(2, 3)}
    printed = capsys.readouterr().out
    assert "wmt14_fr_en" in printed
    assert "2 of 3" in printed
    table = list(csv.DictReader((tmp_path / "run" / "results.csv").open(encoding="utf-8")))
    assert [row["name"] for row in table] == [row["name"] for row in found["rows"]]
    record = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert record["metrics"]["piqa"]["value"] == rows["piqa"]["value"]
    assert record["versions"]["lm-eval"] == lm_eval.__version__
    sample = json.loads((tmp_path / "run" / "samples" / "piqa.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert sample["prompt"] == "Question: bake bread number 1\nAnswer:"
    assert [request["continuation"] for request in sample["requests"]] == [" mix flour and water, then bake", " sleep"]


def test_dtm_runs_on_local_rows(evaluate, tmp_path):
    names = ["gsm8k", "arc_challenge", "arc_easy", "openbookqa", "race", "truthfulqa_mc1", "humaneval", "mbpp"]
    small = ["suite.benchmarks.humaneval.overrides.generation_kwargs={until: ['def'], max_gen_toks: 8}",
             "suite.benchmarks.mbpp.overrides.generation_kwargs={until: ['def'], max_gen_toks: 8}",
             "suite.benchmarks.gsm8k.overrides.generation_kwargs={until: ['Question'], max_gen_toks: 8}",
             "suite.benchmarks.bbh.overrides.generation_kwargs={until: ['Q'], max_gen_toks: 8}"]  # fmt: skip
    words = [*data(tmp_path, *names), *groups(tmp_path), *small, "suite.run_code=true"]
    found = evaluate("suite=dtm", *words)
    rows = {row["name"]: row for row in found["rows"]}
    assert {*names, "mmlu", "bbh", "bbh_mean", "nine"} <= rows.keys()
    assert "mmlu_stem" not in rows, "an average is given only where all its members are"
    assert [rows[name]["subtasks"] for name in ("mmlu", "bbh_mean", "nine")] == ["2 of 57", "2 of 27", "4 of 84"]
    anatomy, astronomy = rows["mmlu/mmlu_anatomy"], rows["mmlu/mmlu_astronomy"]
    assert rows["mmlu"]["value"] == pytest.approx((4 * anatomy["value"] + 6 * astronomy["value"]) / 10)
    assert (rows["mmlu"]["shots"], rows["bbh"]["shots"], rows["gsm8k"]["shots"], rows["mbpp"]["shots"]) == (5, 3, 5, 3)


@pytest.mark.parametrize("name", [path.stem for path in sorted(SUITES.glob("*.yaml"))])
def test_a_suite_is_consistent(name):
    suite = yaml.safe_load((SUITES / f"{name}.yaml").read_text(encoding="utf-8"))
    config = SuiteConfig(name=name, benchmarks=suite.get("benchmarks", {}), averages=suite.get("averages", {}))
    config.check()
    benchmarks = {key: config.benchmark(key) for key in config.benchmarks}
    assert set(suite["tasks"] or []) <= benchmarks.keys()
    for key, benchmark in benchmarks.items():
        task = benchmark.task or key
        assert task in defined_in() or task in own_tasks(1.0, 1.0)
        assert benchmark.metric
        assert benchmark.shots is not None
        assert benchmark.columns
    earlier = set(benchmarks)
    for key in config.averages:
        for member in config.average(key).members:
            assert member.partition("/")[0] in earlier
        earlier.add(key)


def test_the_categories_of_mmlu_are_hendrycks():
    averages = yaml.safe_load((SUITES / "dtm.yaml").read_text(encoding="utf-8"))["averages"]
    members = {name: [task.removeprefix("mmlu/") for task in averages[name]["members"]] for name in averages}
    manager = manager_of("mmlu")
    both = members["mmlu_stem"] + members["mmlu_humanities"] + members["mmlu_social_sciences"] + members["mmlu_other"]
    assert sorted(both) == sorted(subtasks("mmlu", manager))
    assert sorted([*members["mmlu_stem"], "mmlu_anatomy"]) == sorted(subtasks("mmlu_stem", manager))
    assert sorted(members["mmlu_humanities"]) == sorted(subtasks("mmlu_humanities", manager))
    assert sorted(members["mmlu_social_sciences"]) == sorted(subtasks("mmlu_social_sciences", manager))


def local_yaml(folder: Path, name: str, files: dict[str, Path], extra: str = "") -> str:
    """lm-eval's own way to local data: a task of another name that includes the built-in one."""
    lines = "".join(f"    {split}: {path}\n" for split, path in files.items())
    text = f"include: {defined_in()[name]}\ntask: {name}_local\ndataset_path: json\ndataset_name: null\n{extra}"
    (folder / f"{name}.yaml").write_text(f"{text}dataset_kwargs:\n  data_files:\n{lines}", encoding="utf-8")
    return f"{name}_local"


def own_numbers(output: dict[str, Any]) -> dict[str, Any]:
    return {
        task.removesuffix("_local"): {key: value for key, value in metrics.items() if "," in key}
        for task, metrics in output["results"].items()
    }


@pytest.mark.parametrize(
    "words, options",
    [
        ([], {}),
        (["suite.batch_size=3"], {"batch_size": 3}),
        (["suite.limit=3", "seed=7"], {"limit": 3, **dict.fromkeys(
            ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), 7)}),
        (["suite.chat_template=tokenizer", "suite.system_message=be kind"],
         {"apply_chat_template": True, "system_instruction": "be kind", "fewshot_as_multiturn": True}),
        (["suite.chat_template=tokenizer", "suite.fewshot_as_multiturn=false"],
         {"apply_chat_template": True, "fewshot_as_multiturn": False}),
    ],
    ids=["plain", "batch", "limit-seed", "chat", "one-turn"],
)  # fmt: skip
def test_numbers_are_lm_evals(words, options, evaluate, tmp_path):
    from lm_eval.tasks import TaskManager

    places = data(tmp_path, "piqa", "gsm8k", count=8)
    model = save_tiny(tmp_path / "model")
    (tmp_path / "tasks").mkdir()
    piqa, gsm8k = tmp_path / "data" / "piqa", tmp_path / "data" / "gsm8k"
    generation = "generation_kwargs: {until: ['Question:'], max_gen_toks: 8, do_sample: false}\n"
    tasks = [
        local_yaml(
            tmp_path / "tasks", "piqa", {"train": piqa / "train.jsonl", "validation": piqa / "validation.jsonl"}
        ),
        local_yaml(tmp_path / "tasks", "gsm8k", {s: gsm8k / f"{s}.jsonl" for s in ("train", "test")}, generation),
    ]
    expected = lm_eval.simple_evaluate(
        **{"model": "hf", "model_args": {"pretrained": str(model)}, "tasks": tasks, "batch_size": 8, "device": "cpu",
           "task_manager": TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False), **options}
    )  # fmt: skip
    generation = (
        "suite.benchmarks.gsm8k.overrides.generation_kwargs={until: ['Question:'], max_gen_toks: 8, do_sample: false}"
    )
    found = evaluate("suite=lm_eval", "suite.tasks=[piqa,gsm8k]", f"model.name={model}", generation, *places, *words)
    assert {name: entry["metrics"] for name, entry in found["evaluations"].items()} == own_numbers(expected)


@pytest.mark.slow
def test_numbers_are_those_of_lm_evals_command(evaluate, tmp_path):
    places = data(tmp_path, "piqa", "drop", count=8)
    model = save_tiny(tmp_path / "model")
    (tmp_path / "tasks").mkdir()
    piqa = tmp_path / "data" / "piqa"
    names = [
        local_yaml(tmp_path / "tasks", "piqa", {s: piqa / f"{s}.jsonl" for s in ("train", "validation")}),
        local_yaml(tmp_path / "tasks", "drop", {"validation": tmp_path / "data" / "drop" / "validation.jsonl"},
                   "training_split: null\n"),
    ]  # fmt: skip
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={model}",
               "--tasks", ",".join(names), "--include_path", str(tmp_path / "tasks"), "--batch_size", "4", "--device",
               "cpu", "--output_path", str(tmp_path / "out"), "--log_samples"]  # fmt: skip
    done = run_command(command)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "out").rglob("results_*.json")
    expected = json.loads(path.read_text(encoding="utf-8"))
    found = evaluate("suite=lm_eval", "suite.tasks=[piqa,drop]", f"model.name={model}", "suite.batch_size=4", *places)
    assert {name: entry["metrics"] for name, entry in found["evaluations"].items()} == own_numbers(expected)
    hashes = {f"{name}_local": entry["task_hash"] for name, entry in found["evaluations"].items()}
    assert hashes == expected["task_hashes"]


def test_batch_size_changes_no_number(evaluate, tmp_path):
    words = ["suite=ama", "suite.tasks=[piqa,squad]", *data(tmp_path, "piqa", "squad", count=7)]
    one, many = (evaluate(*words, f"suite.batch_size={size}", folder=str(size)) for size in (1, 5))
    assert one["rows"] == many["rows"]
    keys = [run["evaluations"]["piqa"]["experiment"]["batch_size"] for run in (one, many)]
    assert keys == [1, 5], "it is stored, since on a GPU it can"


def test_nothing_is_evaluated_twice(evaluate, tmp_path, capsys):
    piqa, arc = data(tmp_path, "piqa", "arc_easy")
    first = evaluate("suite=ama", "suite.tasks=[piqa]", piqa)
    capsys.readouterr()
    second = evaluate("suite=ama", "suite.tasks=[piqa,arc_easy]", piqa, arc, folder="second")
    printed = capsys.readouterr()
    assert "1 of 2 evaluations were there already" in " ".join(printed.out.split())
    assert "arc_easy (1 of 1)" in printed.err
    assert second["evaluations"]["piqa"] == first["evaluations"]["piqa"]


def test_metrics_of_one_task_share_its_evaluation(evaluate, tmp_path):
    words = data(tmp_path, "gsm8k")
    short = "overrides.generation_kwargs={until: ['Question:'], max_gen_toks: 4}"
    shorts = [f"suite.benchmarks.{name}.{short}" for name in ("gsm8k", "gsm8k_flexible")]
    found = evaluate("suite=dtm", "suite.tasks=[gsm8k,gsm8k_flexible]", *shorts, *words)
    assert list(found["evaluations"]) == ["gsm8k"]
    assert [row["filter"] for row in found["rows"]] == ["strict-match", "flexible-extract"]


def test_what_makes_another_experiment(tmp_path):
    """Each of these is evaluated by itself; where the same rows lie makes no difference."""
    write_benchmark(tmp_path / "a", "piqa")
    write_benchmark(tmp_path / "b", "piqa")
    write_benchmark(tmp_path / "more", "piqa", 7)

    def key(folder: str = "a", seeds: Seeds | None = None, person: Subject | None = None, **fields: Any) -> Path:
        suite = suite_of(tasks=["piqa"], data={"piqa": str(tmp_path / folder / "piqa")}, **fields)
        (planned,) = plan(prepare(suite), suite, person or subject(), seeds or Seeds(), tmp_path).values()
        return planned[1]

    assert key() == key("b") == key(samples=True)
    others = [
        key("more"),
        key(limit=5),
        key(batch_size=4),
        key(max_length=100),
        key(system_message="be kind"),
        key(benchmarks={"piqa": {"shots": 1}}),
        key(benchmarks={"piqa": {"overrides": {"doc_to_text": "Q: {{goal}}\nAnswer:"}}}),
        key(seeds=Seeds.of(1)),
        key(person=subject(model="other")),
        key(person=subject(tokenizer="other")),
        key(person=subject(bos=True)),
        key(person=subject(template="x")),
        key(person=subject(template="x"), fewshot_as_multiturn=False),
        key(person=subject(held={"dtype": "bfloat16"})),
    ]
    assert len({key(), *others}) == len(others) + 1


def test_a_result_says_which_experiment_it_is(evaluate, tmp_path):
    words = ["suite=lm_eval", "suite.tasks=[piqa]", "suite.benchmarks.piqa.shots=2", "suite.chat_template=chatml"]
    found = evaluate(*words, "suite.system_message=be kind", *data(tmp_path, "piqa"))
    facts = found["evaluations"]["piqa"]["experiment"]
    assert facts["lm_eval"] == lm_eval.__version__
    assert facts["version"] == 1.0
    assert (facts["shots"], facts["few_shot"]["seed"], facts["few_shot"]["rows"]) == (2, 1234, 6)
    assert (facts["backend"], facts["batch_size"], facts["system_message"]) == ("hf", 8, "be kind")
    assert facts["fewshot_as_multiturn"] is True
    assert all(len(facts[name]) == 64 for name in ("task_sha256", "model", "tokenizer", "chat_template_sha256"))
    assert len(facts["data"]["sha256"]) == len(facts["few_shot"]["sha256"]) == 64
    assert found["evaluations"]["piqa"]["questions"] == {"effective": 6, "original": 6}


class Interrupting:
    """A back end whose user presses Ctrl-C when it has answered ``left`` requests."""

    def __new__(cls, left: int) -> Any:
        from lm_eval.api.model import LM

        class Backend(LM):
            max_length = 2048
            max_gen_toks = 256
            answered = 0

            def tok_encode(self, text: str) -> list[int]:
                return list(text.encode())

            def loglikelihood(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
                answers = []
                for request in requests:
                    if self.answered >= left:
                        raise KeyboardInterrupt
                    self.answered += 1
                    answers.append((-float(len(request.args[1])), False))
                return answers

            def loglikelihood_rolling(self, requests: Any) -> Any:
                raise NotImplementedError

            def generate_until(self, requests: Any) -> Any:
                raise NotImplementedError

        return Backend()


def test_an_interrupted_suite_goes_on_with_the_next_task(tmp_path):
    places = {name: str(write_benchmark(tmp_path / "data", name)) for name in ("piqa", "arc_easy", "openbookqa")}
    suite = suite_of(tasks=list(places), data=places)
    prepared = prepare(suite)
    arguments = (prepared, suite, subject(), Seeds())
    with pytest.raises(KeyboardInterrupt):
        run_suite(*arguments, lambda: Interrupting(2 * 6 + 5), tmp_path / "cache")
    second = Interrupting(10**6)
    results = run_suite(*arguments, lambda: second, tmp_path / "cache")
    assert [result.fresh for result in results.values()] == [False, True, True]
    assert second.answered == 2 * 4 * 6
    whole = run_suite(*arguments, lambda: Interrupting(10**6), tmp_path / "another")
    assert {name: result.metrics for name, result in whole.items()} == {
        name: result.metrics for name, result in results.items()
    }


def test_prompts_that_were_cut_are_counted(evaluate, tmp_path, capsys):
    found = evaluate("suite=ama", "suite.tasks=[piqa]", "suite.max_length=12", *data(tmp_path, "piqa"))
    assert found["rows"][0]["truncated"] == 6
    assert "6 of 6 prompts lost their beginning" in " ".join(capsys.readouterr().out.split())


def test_perplexity_of_whole_texts(evaluate, tmp_path):
    """Tasks without a prompt, such as wikitext: longer texts are read in windows, and no prompt is cut."""
    pages = [{"page": " = Dogs = \n the dog sleeps in the sun . " * number} for number in (1, 9)]
    file = write_rows(tmp_path / "pages.jsonl", pages)
    found = evaluate("suite=lm_eval", "suite.tasks=[wikitext]", f"suite.data.wikitext={file}", "suite.max_length=64",
                     "suite.samples=true")  # fmt: skip
    assert [row["metric"] for row in found["rows"]] == ["word_perplexity", "byte_perplexity", "bits_per_byte"]
    assert {row["truncated"] for row in found["rows"]} == {0}
    lines = (tmp_path / "run/samples/wikitext.jsonl").read_text(encoding="utf-8").splitlines()
    samples = [json.loads(line) for line in lines]
    bits = -sum(sample["requests"][0]["logprob"] for sample in samples) / math.log(2)
    total = sum(len(page["page"].encode()) for page in pages)
    assert found["rows"][2]["value"] == pytest.approx(bits / total)


def test_a_dry_run_says_what_would_be_evaluated(tmp_path, capsys):
    words = ["evaluate", "model=tiny", "suite=ama", "suite.tasks=[piqa]", *data(tmp_path, "piqa")]
    assert run(APP, [*words, f"output_dir={tmp_path / 'run'}", "--dry-run"]) == 0
    assert "piqa" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.distributed
def test_two_processes_give_the_numbers_of_one(evaluate, tmp_path):
    """With drawn examples too: lm-eval by itself draws others when there are more processes."""
    short = "suite.benchmarks.gsm8k.overrides.generation_kwargs={until: ['Question:'], max_gen_toks: 4}"
    words = ["suite=lm_eval", "suite.tasks=[piqa,gsm8k]", "suite.benchmarks.piqa.shots=2", short,
             "suite.benchmarks.gsm8k.shots=2", *data(tmp_path, "piqa", "gsm8k", count=7)]  # fmt: skip
    one = evaluate(*words, f"cache_dir={tmp_path / 'one'}")
    two = evaluate(*words, f"cache_dir={tmp_path / 'two'}", "launch=ddp", "launch.processes=2", folder="two")
    for name, entry in one["evaluations"].items():
        other = two["evaluations"][name]
        assert other["processes"] == 2
        assert other["task_hash"] == entry["task_hash"]
        assert other["metrics"] == pytest.approx(entry["metrics"], nan_ok=True)


def test_answers_of_one_gemma_are_not_taken_for_those_of_the_other(evaluate, tmp_path):
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokenizer = tiny_tokenizer()
    config = GemmaConfig(**shape, head_dim=8, num_key_value_heads=1, vocab_size=len(tokenizer), initializer_range=0.6)
    GemmaForCausalLM(config).save_pretrained(tmp_path / "gemma")
    tokenizer.save_pretrained(tmp_path / "gemma")
    words = ["suite=ama", "suite.tasks=[piqa]", *data(tmp_path, "piqa"), f"model.name={tmp_path / 'gemma'}"]
    runs = [evaluate(*words, *more, folder=str(len(more))) for more in ([], ["model.gemma_numerics=transformers-4.38"])]
    assert ["gemma_numerics" in run["model"]["held"] for run in runs] == [False, True]
    experiments = [run["evaluations"]["piqa"]["experiment"] for run in runs]
    assert experiments[0] != experiments[1]
