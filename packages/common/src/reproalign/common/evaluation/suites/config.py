"""A suite as data: its benchmarks, its averages, and how the model is asked.

The suites of the papers are the YAML files of the group ``suite`` (``reproalign.common.configs.suite``); another file
there, or ``suite=lm_eval suite.tasks=[…]``, is another suite.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from reproalign.common.config import LaunchConfig, ModelConfig
from reproalign.common.errors import UserError, choose

BACKENDS = ("hf", "vllm")
WEIGHTS = ("equal", "questions")

Section = TypeVar("Section")


@dataclass
class BenchmarkConfig:
    """One number of a suite: a task of lm-eval, or a group of them, and the metric that is reported of it."""

    task: str | None = None  # of lm-eval, or of ours (see docs/evaluation.md); null: the benchmark's own name
    shots: int | None = None  # worked examples in the prompt; null: the task's own number
    metric: str | None = None  # e.g. acc, f1, bleu; null: all of the task's
    filter: str | None = None  # lm-eval's filter of the answers, e.g. strict-match; null: all of the task's
    scale: float = 1.0  # lm-eval's number is multiplied by it, e.g. 100 for per cent
    columns: list[str] = field(default_factory=list)  # that a row of local data needs; a dot goes into a nested one
    overrides: dict[str, Any] = field(default_factory=dict)  # fields of lm-eval's task configuration
    note: str | None = None  # what the number may not be compared with


@dataclass
class AverageConfig:
    """A mean over benchmarks, over the subtasks of one (``bbh/*``), or over averages named before it."""

    members: list[str] = field(default_factory=list)
    weight: str = "equal"  # equal | questions
    note: str | None = None


@dataclass
class SuiteConfig:
    """Which benchmarks are run, on which data, and how the model is asked."""

    name: str = MISSING  # stands above the table
    title: str | None = None  # one line
    source: str | None = None  # where the facts of the suite come from
    benchmarks: dict[str, Any] = field(default_factory=dict)  # name -> task, shots, metric …: all that the suite knows
    averages: dict[str, Any] = field(default_factory=dict)  # name -> members, weight; given where all members were run
    tasks: list[str] | None = None  # what is run: names of benchmarks, or of lm-eval's tasks and groups
    data: dict[str, Any] = field(default_factory=dict)  # benchmark -> file or folder, or {split: file}; else the Hub
    missing_subtasks: str = "error"  # error | skip: subtasks of a group that the folder of local data lacks
    limit: int | None = None  # questions per task, the first ones
    backend: str = "hf"  # hf | vllm
    vllm: dict[str, Any] = field(default_factory=dict)  # further arguments of vllm.LLM, e.g. tensor_parallel_size
    batch_size: int = 8  # prompts at once in each process
    max_length: int | None = None  # tokens of prompt and answer; longer prompts lose their beginning; null: the model's
    add_bos: bool | None = None  # begin with the BOS token; null: as the tokenizer does
    chat_template: str | None = None  # null: none | tokenizer (its own) | a name in common.text.templates | a file
    system_message: str | None = None  # put before every prompt
    fewshot_as_multiturn: bool = True  # with a chat template: every worked example is a turn of its own
    run_code: bool = False  # allow benchmarks that run what the model wrote (humaneval, mbpp)
    code_timeout: float = 3.0  # seconds for one program
    code_memory: float = 4.0  # GiB for one program
    samples: bool = False  # write prompts and answers to samples/ in output_dir, and show one of each task

    def benchmark(self, name: str) -> BenchmarkConfig:
        """Return what the suite says of a benchmark; of a task of lm-eval that it does not know, nothing.

        Raises:
            UserError: for an unknown key or a value of another type.
        """
        return _section(BenchmarkConfig, self.benchmarks.get(name), f"suite.benchmarks.{name}")

    def average(self, name: str) -> AverageConfig:
        """Return the average of that name; raises as :meth:`benchmark` does."""
        return _section(AverageConfig, self.averages.get(name), f"suite.averages.{name}")

    def check(self) -> None:
        """Refuse values that no run could have.

        Raises:
            UserError: naming the key, its value and what is allowed.
        """
        choose("suite.backend", self.backend, BACKENDS)
        choose("suite.missing_subtasks", self.missing_subtasks, ("error", "skip"))
        for name in ("limit", "batch_size", "max_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"suite.{name}={value} must be at least 1")
        for name in ("code_timeout", "code_memory"):
            if not getattr(self, name) > 0:
                raise UserError(f"suite.{name}={getattr(self, name)} must be above 0")
        if self.vllm and self.backend != "vllm":
            raise UserError("suite.vllm.* is read by suite.backend=vllm alone; set it, or leave these keys out")
        for name in self.averages:
            choose(f"suite.averages.{name}.weight", self.average(name).weight, WEIGHTS)
        for name in self.benchmarks:
            shots = self.benchmark(name).shots
            if shots is not None and shots < 0:
                raise UserError(f"suite.benchmarks.{name}.shots={shots} must not be negative")


def _section(cls: type[Section], values: Any, key: str) -> Section:
    # Not typed in SuiteConfig itself: a word of the command could not add an entry then.
    try:
        merged = OmegaConf.merge(OmegaConf.structured(cls), OmegaConf.create(values or {}))
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise UserError(f"{key}: {str(error).splitlines()[0]}") from error


@dataclass
class EvaluateSuiteConfig:
    """``evaluate suite=NAME``: a suite of lm-eval's tasks on one model."""

    output_dir: str = MISSING
    seed: int | None = None  # null: lm-eval's seeds (0 for Python, 1234 for numpy, torch, worked examples); else of all
    model: ModelConfig = field(default_factory=ModelConfig)
    suite: SuiteConfig = field(default_factory=SuiteConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)  # single, or ddp: the questions are shared
    cache_dir: str | None = None  # of all results that there are; null: the user's cache folder
