"""What a suite cannot be run with: one sentence each, before a model is loaded, and nothing is written."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from reproalign.common.command.app import App, run
from reproalign.common.errors import UserError
from reproalign.common.evaluation.suites.config import SuiteConfig
from reproalign.common.files import space_needed
from reproalign.common.models.tiny import save_tiny
from reproalign.common.testing import file_limit, refusal
from reproalign.common.testing.benchmark_rows import benchmark_rows, write_benchmark, write_rows
from reproalign.common.verbs import EVALUATE_SUITE

pytest.importorskip("lm_eval")

APP = App("toy", "reproalign.common", "reproalign-common", "a paper", verbs=(EVALUATE_SUITE,))
Fails = Callable[..., str]


def main(words: Sequence[str]) -> int:
    return run(APP, words)


@pytest.fixture
def fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Fails:
    """Run ``toy evaluate suite=ama`` on good rows with further words, and return the one line of error."""
    folder = tmp_path / "files"
    piqa = write_benchmark(folder, "piqa")
    write_benchmark(folder, "gsm8k", 3)

    def call(*words: str, suite: str = "ama", tasks: str = "piqa", data: bool = True) -> str:
        given = [f"suite.data.piqa={piqa}"] if data else []
        line = ["evaluate", "model=tiny", f"suite={suite}", f"suite.tasks=[{tasks}]", *given]
        return refusal("toy", main, [*line, f"output_dir={tmp_path / 'run'}", *words], capsys, untouched=tmp_path)

    return call


@pytest.mark.parametrize(
    "words, message",
    [
        (["suite.tasks=[pikka]"], "no task of lm-eval 0.4.13 is named 'pikka' (did you mean 'piqa'?)"),
        (["suite.tasks=[]"], "suite.tasks is empty; name what is to be run"),
        (["suite=amma"], "unknown suite configuration 'amma' (did you mean 'ama'?)"),
        (["suite.limit=0"], "suite.limit=0 must be at least 1"),
        (["suite.batch_size=0"], "suite.batch_size=0 must be at least 1"),
        (["suite.code_timeout=0"], "suite.code_timeout=0.0 must be above 0"),
        (["suite.backend=vllm"], "suite.backend=vllm needs vLLM, which is not installed: pip install vllm"),
        (["suite.backend=jax"], "unknown suite.backend 'jax'; choose one of: hf, vllm"),
        (["suite.vllm.tensor_parallel_size=2"], "suite.vllm.* is read by suite.backend=vllm alone"),
        (["suite.chat_template=chatmll"], "suite.chat_template=chatmll: no such template (did you mean 'chatml'?)"),
        (["suite.add_bos=true"], "suite.add_bos=true: the tokenizer of"),
        (["suite.benchmarks.piqa.metric=accuracy"], "unknown suite.benchmarks.piqa.metric 'accuracy'"),
        (["suite.benchmarks.piqa.filter=strict"], "unknown suite.benchmarks.piqa.filter 'strict'"),
        (["suite.benchmarks.piqa.shot=1"], "suite.benchmarks.piqa: Key 'shot' not in 'BenchmarkConfig'"),
        (["suite.benchmarks.piqa.shots=-1"], "suite.benchmarks.piqa.shots=-1 must be at least 0"),
        (["suite.benchmarks.piqa.shots=9"], "9 worked examples need 10 rows; split 'train' of 'piqa' has 6: give more"),
        (["suite.averages.common_sense.weight=words"], "unknown suite.averages.common_sense.weight 'words'"),
        (["suite.data.pika=x"], "suite.data.pika: not among suite.tasks (did you mean 'piqa'?)"),
        (["suite.sample=true"], "unknown key 'suite.sample' (did you mean 'suite.samples'?)"),
        (["model.chat_template=chatml"], "model.chat_template=chatml: evaluation reads suite.chat_template"),
        (["model.lora.enabled=true"], "model.lora.enabled is gone: nothing is trained here"),
        (["model.name=./nowhere"], "model.name=./nowhere: no such folder"),
        (["launch=zero2", "launch.processes=1"], "launch.strategy=zero2"),
        (["launch=zero2", "--dry-run"], "launch.strategy=zero2 splits a model that is trained"),
    ],
)  # fmt: skip
def test_a_suite_is_refused(words, message, fails):
    assert message in fails(*words)


def test_programs_are_not_run_unasked(fails):
    error = fails(suite="dtm", tasks="piqa,humaneval,mbpp")
    assert (
        "humaneval, mbpp: programs that the model writes would be run here; allow it with suite.run_code=true" in error
    )
    assert "suite.tasks=[piqa]" in error


@pytest.mark.parametrize("broken", ["goal", "label"])
def test_a_column_is_missing(broken, fails, tmp_path):
    rows = benchmark_rows("piqa", 3)
    del rows[1][broken]
    path = write_rows(tmp_path / "rows" / "bad.jsonl", rows)
    error = fails(f"suite.data.piqa={path}", data=False)
    assert f"{path} line 2: column '{broken}' is missing or empty (suite.data.piqa)" in error
    assert "goal, sol1, sol2, label" in error


def test_a_nested_column_is_missing(fails, tmp_path):
    rows = benchmark_rows("arc_easy", 3)
    del rows[2]["choices"]["label"]
    path = write_rows(tmp_path / "rows" / "bad.jsonl", rows)
    error = fails(f"suite.data.arc_easy={path}", tasks="arc_easy", data=False)
    assert f"{path} line 3: column 'choices.label' is missing or empty" in error


def test_rows_of_another_schema_for_a_task_that_no_suite_knows(fails, tmp_path):
    path = write_rows(tmp_path / "rows" / "bad.jsonl", benchmark_rows("gsm8k", 3))
    error = fails(f"suite.data.hellaswag={path}", suite="lm_eval", tasks="hellaswag", data=False)
    assert "suite.data.hellaswag: not a row that lm-eval's 'hellaswag' reads (KeyError" in error


def test_a_value_that_a_task_cannot_read(fails, tmp_path):
    rows = benchmark_rows("arc_easy", 3)
    rows[2]["answerKey"] = "Z"
    path = write_rows(tmp_path / "rows" / "bad.jsonl", rows)
    error = fails(f"suite.data.arc_easy={path}", tasks="arc_easy", data=False)
    assert "suite.data.arc_easy: row 3: not a row that lm-eval's 'arc_easy' reads" in error


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "the file has no rows"),
        ('{"goal": "x"\n', "bad.jsonl line 1: not valid JSON"),
        ("[1]\n", "bad.jsonl line 1: not a JSON object"),
    ],
)
def test_a_file_that_is_none(text, message, fails, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(text, encoding="utf-8")
    assert message in fails(f"suite.data.piqa={path}", data=False)


@pytest.mark.parametrize(
    "words, message",
    [
        (["suite.data.piqa=nowhere.jsonl"], "suite.data.piqa=nowhere.jsonl: no such file"),
        (["suite.data.piqa={dev: x.jsonl}"], "suite.data.piqa.dev: the task has no such split; it has"),
        (["suite.data.piqa={train: FILES/piqa/train.jsonl}"], "give the file of split 'validation'"),
        (["suite.data.piqa=FILES"], "no file named by a split of the task (validation, train)"),
        (["suite.tasks=[gsm8k]", "suite.data.gsm8k=FILES/gsm8k/test.jsonl"],
         "the 5 worked examples come from split 'train'; add suite.data.gsm8k.train=FILE"),
        (["suite.tasks=[mmlu]", "suite.data.mmlu=FILES"], "no folder for any subtask, such as"),
        (["suite.tasks=[mmlu]", "suite.data.mmlu=FILES/piqa/train.jsonl"], "a group needs one with a folder for each"),
        (["suite.tasks=[humaneval]", "suite.data.humaneval=FILES/piqa", "suite.run_code=true"],
         "no file named by a split of the task (test)"),
    ],
)  # fmt: skip
def test_files_and_splits(words, message, fails, tmp_path):
    places = [word.replace("FILES", str(tmp_path / "files")) for word in words]
    assert message in fails(
        *places, suite="dtm" if "mmlu" in words[0] or "gsm8k" in words[0] else "lm_eval", data=False
    )


def test_a_group_with_a_subtask_missing(fails, tmp_path):
    write_rows(tmp_path / "bbh" / "snarks" / "test.jsonl", benchmark_rows("bbh", 2))
    error = fails(f"suite.data.bbh={tmp_path / 'bbh'}", suite="dtm", tasks="bbh", data=False)
    assert "26 of 27 subtasks have no folder there" in error
    assert "suite.missing_subtasks=skip" in error


def test_a_prompt_that_is_fixed(fails, tmp_path):
    folder = write_benchmark(tmp_path / "files", "truthfulqa_mc1")
    error = fails("suite.benchmarks.truthfulqa_mc1.shots=5", f"suite.data.truthfulqa_mc1={folder}", suite="dtm",
                  tasks="truthfulqa_mc1", data=False)  # fmt: skip
    assert "suite.benchmarks.truthfulqa_mc1.shots=5: 'truthfulqa_mc1' has a fixed prompt; set 0" in error


def test_answers_longer_than_the_model(fails, tmp_path):
    folder = write_benchmark(tmp_path / "files", "humaneval")
    error = fails(f"suite.data.humaneval={folder}", "suite.run_code=true", "suite.max_length=512", suite="dtm",
                  tasks="humaneval", data=False)  # fmt: skip
    assert "humaneval asks for answers of up to 1024 tokens, and the model takes 512 in all" in error
    by_default = fails(f"suite.data.gsm8k={tmp_path / 'files' / 'gsm8k'}", "suite.max_length=200", "suite=lm_eval",
                       "suite.benchmarks.gsm8k.shots=0", tasks="gsm8k", data=False)  # fmt: skip
    assert "gsm8k asks for answers of up to 256 tokens, and the model takes 200 in all" in by_default


def test_a_tokenizer_without_a_template(fails, tmp_path):
    model = save_tiny(tmp_path / "model")
    (model / "chat_template.jinja").unlink()
    assert "has no chat template; choose one of" in fails(f"model.name={model}", "suite.chat_template=tokenizer")


def test_data_that_the_hub_does_not_give(fails, monkeypatch):
    error = fails(data=False, tasks="openbookqa", suite="dtm")
    assert "the data of lm-eval's 'openbookqa' cannot be loaded from the Hub" in error
    assert "set suite.data.openbookqa=FILE" in error


def test_without_lm_eval():
    """An environment without the extra: the sentence names the command that adds it."""
    code = (
        "import importlib.util as u; find = u.find_spec;"
        "u.find_spec = lambda name, *rest: None if name == 'lm_eval' else find(name, *rest);"
        "from reproalign.common.evaluation.suites.catalogue import lm_eval_version; lm_eval_version()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].endswith("suites need lm-eval: pip install 'reproalign-common[eval]'")


@pytest.mark.parametrize("space", [500, 20_000], ids=["record", "samples"])
def test_a_disk_that_fills_up(space, tmp_path, capsys):
    """In the beginning, when the record is written, and later: samples are longer."""
    rows = [{**row, "goal": "word " * 4000} for row in benchmark_rows("piqa", 2)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    words = [
        "evaluate",
        "model=tiny",
        "suite=ama",
        "suite.tasks=[piqa]",
        f"suite.data.piqa={path}",
        "suite.samples=true",
    ]
    before = {entry.name for entry in tmp_path.iterdir()}
    assert main([*words, f"output_dir={tmp_path / 'warm'}", "--dry-run"]) == 0  # the tiny model is made
    with file_limit(space):
        code = main([*words, f"output_dir={tmp_path / 'run'}"])
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("toy: error")]
    assert code == 2
    assert len(error) == 1
    assert f"output_dir={tmp_path / 'run'}" in error[0]
    assert "no space to write" in error[0]
    assert {entry.name for entry in tmp_path.iterdir()} == before, "nothing is half-written"
    assert main([*words, f"output_dir={tmp_path / 'run'}"]) == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))["rows"]


def test_other_errors_of_the_system_are_not_a_full_disk():
    with pytest.raises(PermissionError), space_needed("output_dir=x"):
        raise PermissionError(errno.EACCES, "no")
    with pytest.raises(UserError, match="output_dir=x: no space to write"), space_needed("output_dir=x"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_section_of_a_suite_is_checked():
    suite = SuiteConfig(name="x", benchmarks={"piqa": {"shots": "many"}})
    with pytest.raises(UserError, match=r"suite\.benchmarks\.piqa: .*many"):
        suite.benchmark("piqa")


def test_an_evaluation_without_a_suite_is_told_those_there_are(capsys):
    sentence = "suite is not set; add suite=NAME, one of: ama, dtm, lm_eval"
    assert sentence in refusal("toy", main, ["evaluate", "model=tiny", "output_dir=run"], capsys)
