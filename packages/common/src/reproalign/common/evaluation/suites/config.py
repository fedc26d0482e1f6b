"""A suite as data: its benchmarks, its averages, and how the model is asked.

The suites of the papers are the YAML files of the group ``suite`` (``reproalign.common.configs.suite``); another file
there, or ``suite=lm_eval suite.tasks=[…]``, is another suite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from reproalign.common.config.launch import LaunchConfig
from reproalign.common.config.model import LoadedModelConfig
from reproalign.common.errors import UserError
from reproalign.common.options import option, output_dir, section, seed
from reproalign.common.options.check import check

Section = TypeVar("Section")


@dataclass
class BenchmarkConfig:
    """One number of a suite: a task of lm-eval, or a group of them, and the metric that is reported of it."""

    task: str | None = option(
        None, help="of lm-eval, or of ours (see docs/evaluation.md)", null="the benchmark's own name"
    )
    shots: int | None = option(None, help="worked examples in the prompt", at_least=0, null="the task's own number")
    metric: str | None = option(None, help="e.g. acc, f1, bleu", null="all of the task's")
    filter: str | None = option(
        None, help="lm-eval's filter of the answers, e.g. strict-match", null="all of the task's"
    )
    scale: float = option(1.0, help="lm-eval's number is multiplied by it, e.g. 100 for per cent")
    columns: list[str] = option([], help="that a row of local data needs; a dot goes into a nested one")
    overrides: dict[str, Any] = option({}, help="fields of lm-eval's task configuration")
    note: str | None = option(None, help="what the number may not be compared with", null="nothing is said")


@dataclass
class BenchmarkAverageConfig:
    """A mean over benchmarks, over the subtasks of one (``bbh/*``), or over averages named before it."""

    members: list[str] = option([], help="benchmarks, averages named before, or all subtasks of one (bbh/*)")
    weight: str = option("equal", help="of a member", choices={"equal": "", "questions": "its number of questions"})
    note: str | None = option(None, help="what the number may not be compared with", null="nothing is said")


@dataclass
class SuiteConfig:
    """Which benchmarks are run, on which data, and how the model is asked."""

    name: str = option(help="stands above the table")
    benchmarks: dict[str, Any] = option({}, help="name -> task, shots, metric …: all that the suite knows")
    averages: dict[str, Any] = option({}, help="name -> members, weight; given where all members were run")
    tasks: list[str] | None = option(
        None,
        help="what is run: names of benchmarks, or of lm-eval's tasks and groups",
        null="all benchmarks of the suite",
    )
    data: dict[str, Any] = option({}, help="benchmark -> file or folder, or {split: file}; without one: the Hub")
    missing_subtasks: str = option(
        "error", help="subtasks of a group that the folder of local data lacks", choices=("error", "skip")
    )
    limit: int | None = option(None, help="questions per task, the first ones", at_least=1, null="all")
    backend: str = option("hf", help="what generates", choices={"hf": "transformers", "vllm": ""})
    vllm: dict[str, Any] = option({}, help="further arguments of vllm.LLM, e.g. tensor_parallel_size")
    batch_size: int = option(8, help="prompts at once in each process", at_least=1)
    max_length: int | None = option(
        None,
        help="tokens of prompt and answer; longer prompts lose their beginning",
        unit="tokens",
        at_least=1,
        null="the model's",
    )
    add_bos: bool | None = option(None, help="begin with the BOS token", null="as the tokenizer does")
    chat_template: str | None = option(
        None,
        help="how a prompt is written",
        choices={"tokenizer": "its own"},
        also="a name in reproalign.common.text.templates, or a file",
        null="as plain text",
    )
    system_message: str | None = option(None, help="put before every prompt", null="none")
    fewshot_as_multiturn: bool = option(True, help="with a chat template: every worked example is a turn of its own")
    run_code: bool = option(False, help="allow benchmarks that run what the model wrote (humaneval, mbpp)")
    code_timeout: float = option(3.0, help="of one program", unit="seconds", above=0)
    code_memory: float = option(4.0, help="of one program", unit="GiB", above=0)
    samples: bool = option(False, help="write prompts and answers to samples/ in output_dir, and show one of each task")

    def benchmark(self, name: str) -> BenchmarkConfig:
        """Return what the suite says of a benchmark; of a task of lm-eval that it does not know, nothing.

        Raises:
            UserError: for an unknown key, a value of another type, or one that is not allowed.
        """
        return _section(BenchmarkConfig, self.benchmarks.get(name), f"suite.benchmarks.{name}")

    def average(self, name: str) -> BenchmarkAverageConfig:
        """Return the average of that name; raises as :meth:`benchmark` does."""
        return _section(BenchmarkAverageConfig, self.averages.get(name), f"suite.averages.{name}")

    def check(self) -> None:
        """Refuse values that no run could have.

        Raises:
            UserError: naming the key, its value and what is allowed.
        """
        if self.vllm and self.backend != "vllm":
            raise UserError("suite.vllm.* is read by suite.backend=vllm alone; set it, or leave these keys out")
        for name in self.averages:
            self.average(name)
        for name in self.benchmarks:
            self.benchmark(name)


def _section(cls: type[Section], values: Any, key: str) -> Section:
    # Not typed in SuiteConfig itself: a word of the command could not add an entry then.
    try:
        merged = OmegaConf.merge(OmegaConf.structured(cls), OmegaConf.create(values or {}))
        found: Section = OmegaConf.to_object(merged)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise UserError(f"{key}: {str(error).splitlines()[0]}") from error
    check(cls, vars(found), f"{key}.")
    return found


@dataclass
class EvaluateSuiteConfig:
    """``evaluate suite=NAME``: a suite of lm-eval's tasks on one model."""

    output_dir: str = output_dir()
    seed: int | None = seed(
        None,
        help="of Python, NumPy, PyTorch and the worked examples",
        null="lm-eval's: 0 for Python, 1234 for the others",
    )
    model: LoadedModelConfig = section(LoadedModelConfig)
    suite: SuiteConfig = section(SuiteConfig)
    launch: LaunchConfig = section(LaunchConfig, help="single, or ddp: the questions are shared")
    cache_dir: str | None = option(None, help="folder of all results that there are", null="the user's cache folder")
