"""What makes a number another experiment, and its key in the cache."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from reproalign.common.evaluation.suites.catalogue import lm_eval_version
from reproalign.common.evaluation.suites.config import SuiteConfig
from reproalign.common.evaluation.suites.loading import LoadedTask
from reproalign.common.evaluation.suites.tasks import RUNS_CODE
from reproalign.common.files import sha256_json

FORMAT = 1  # raised when the numbers of our own tasks change, so that older ones are not taken for them

# Where data come from is no part of the experiment: their rows are, by their hash. lm-eval writes the shots in when it
# begins; they have a place of their own.
_ELSEWHERE = ("dataset_path", "dataset_name", "dataset_kwargs", "metadata", "custom_dataset", "num_fewshot")


@dataclass(frozen=True)
class Seeds:
    """lm-eval's four seeds, with its defaults."""

    python: int = 0
    numpy: int = 1234
    torch: int = 1234
    fewshot: int = 1234

    @classmethod
    def of(cls, seed: int | None) -> Seeds:
        """Return lm-eval's defaults, or one seed for all, as ``lm-eval --seed N`` has it."""
        return cls() if seed is None else cls(seed, seed, seed, seed)


@dataclass(frozen=True)
class Subject:
    """The model that is asked, as far as answers depend on it.

    Attributes:
        model: identity of the weights.
        tokenizer: its fingerprint.
        bos: whether plain prompts begin with the BOS token.
        template: text of the chat template; None: prompts are plain.
        held: how the weights are held and run: dtype, attention, quantisation, settings of the model's folder.
        versions: of what else takes part: vLLM.
    """

    model: str
    tokenizer: str
    bos: bool
    template: str | None = None
    held: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


def experiment(evaluation: LoadedTask, suite: SuiteConfig, subject: Subject, seeds: Seeds) -> dict[str, Any]:
    """Return all that the number of an evaluation depends on, as plain values."""
    task = evaluation.task
    config = task.config
    docs = _first(task.eval_docs, suite.limit)
    template = subject.template
    return {
        "format": FORMAT,
        "lm_eval": lm_eval_version(),
        "task": config.task,
        "version": task.VERSION,
        "task_sha256": sha256_json(_plain({k: v for k, v in vars(config).items() if k not in _ELSEWHERE})),
        "data": {"split": config.test_split or config.validation_split, "rows": len(docs), "sha256": _hash(docs)},
        "limit": suite.limit,
        "shots": evaluation.shots,
        "few_shot": _few_shot(evaluation, seeds),
        "model": subject.model,
        "held": subject.held,
        "tokenizer": subject.tokenizer,
        "backend": suite.backend,
        "backend_arguments": _plain(suite.vllm),
        "versions": subject.versions,
        "batch_size": suite.batch_size,
        "max_length": suite.max_length,
        "bos": subject.bos,
        "chat_template_sha256": None if template is None else sha256_json(template),
        "fewshot_as_multiturn": suite.fewshot_as_multiturn if template is not None else None,
        "system_message": suite.system_message,
        "seeds": vars(seeds),
        "programs": [suite.code_timeout, suite.code_memory] if config.task in RUNS_CODE else None,
    }


def _few_shot(evaluation: LoadedTask, seeds: Seeds) -> dict[str, Any] | None:
    """Return what the worked examples are: drawn from these rows by this sampler with this seed."""
    if not evaluation.shots:
        return None
    sampler = evaluation.task.sampler
    rows = list(sampler.fewshot_docs())
    return {"sampler": type(sampler).__name__, "seed": seeds.fewshot, "rows": len(rows), "sha256": _hash(rows)}


def _first(docs: Any, limit: int | None) -> list[Any]:
    return [doc for _, doc in zip(range(limit if limit is not None else len(docs)), docs, strict=False)]


def _hash(docs: Iterable[Any]) -> str:
    return sha256_json([sha256_json(_plain(doc)) for doc in docs])


def _plain(value: Any) -> Any:
    """Copy of ``value`` that JSON can carry; a function is its source text."""
    if isinstance(value, partial):
        return [_plain(value.func), _plain(value.args), _plain(value.keywords)]
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if hasattr(value, "__dataclass_fields__"):
        return _plain(vars(value))
    if isinstance(value, set):  # in another order in every process
        return sorted(str(_plain(entry)) for entry in value)
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if callable(value):
        try:
            return inspect.getsource(value)
        except (OSError, TypeError):  # of C, or made by a program
            return getattr(value, "__qualname__", type(value).__qualname__)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)
