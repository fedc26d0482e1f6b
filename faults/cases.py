"""What is disturbed: a command of every verb that takes long, on tiny models and few rows.

A case's run is ``runs/NAME``. What its words name below ``runs/`` are the runs of earlier cases, which it reads.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

STEPS = (
    "trainer.max_steps=6 trainer.save_steps=2 trainer.logging_steps=1 trainer.per_device_train_batch_size=2 "
    "trainer.gradient_accumulation_steps=2"
)
ROWS = "data.max_rows=32 data.max_eval_rows=8"
OWN_STEPS = f"trainer.save_strategy=steps {STEPS} trainer.learning_rate=0.001"
TWO = ("launch=ddp", "launch.processes=2", "launch.main_port=0")


@dataclass(frozen=True)
class Case:
    """A command.

    Attributes:
        name: of the case, and of its folder below ``runs/``.
        line: the command line without ``output_dir``.
        two: whether it starts two processes, which takes a quarter of a minute.
    """

    name: str
    line: str
    two: bool = False

    @property
    def folder(self) -> str:
        """Where the run is, below the place that the command is given in."""
        return f"runs/{self.name}"

    @property
    def words(self) -> list[str]:
        """The whole command line."""
        return [*shlex.split(self.line), *(TWO if self.two else ()), f"output_dir={self.folder}"]

    @property
    def needs(self) -> list[str]:
        """The cases whose runs this one reads."""
        return sorted(set(re.findall(r"\bruns/([\w-]+)", self.line)))


def _cases(*cases: Case) -> dict[str, Case]:
    return {case.name: case for case in cases}


TOY = _cases(
    Case("toy-train", "toy train experiment=smoke trainer.max_steps=6"),
)
CASES = _cases(
    Case("mmpo-sft", f"mmpo sft experiment=smoke-sft {ROWS} {STEPS}"),
    Case("mmpo-train", f"mmpo train experiment=smoke {ROWS} {STEPS}"),
    Case("mmpo-cached", f"mmpo train experiment=smoke {ROWS} {STEPS} reference.mode=cached"),
    Case("mmpo-lora", f"mmpo train experiment=smoke {ROWS} {STEPS} model.lora.enabled=true model.lora.merge=true"),
    Case("mmpo-reward", f"mmpo reward experiment=smoke-reward {ROWS} {STEPS}"),
    Case(
        "mmpo-evaluate",
        "mmpo evaluate model.name=runs/mmpo-train/model reference.model=tiny:llama data=demo data.max_eval_rows=8 "
        "text.max_length=256 text.max_prompt_length=128",
    ),
    Case(
        "more-train",
        f"more-rm train experiment=smoke {STEPS} trainer.eval_steps=4 model.pooling=average",
    ),
    Case("more-multitask", f"more-rm train experiment=smoke {STEPS} trainer.eval_steps=4 method=multitask"),
    Case(
        "more-sample",
        "more-rm sample model=tiny prompts=demo:pairs-eval max_prompts=12 n=4 max_new_tokens=8 batch_size=8",
    ),
    Case(
        "more-score",
        "more-rm score model.name=runs/more-train/model responses=runs/more-sample/responses.jsonl batch_size=4",
    ),
    Case("more-select", "more-rm select scored=runs/more-score/scored.jsonl n=4"),
    Case("more-align", f"more-rm align model=tiny selected=runs/more-select/selected.jsonl {OWN_STEPS}"),
    Case("radpo-train", f"radpo train experiment=smoke {ROWS} {STEPS}"),
    Case("radpo-dpo", f"radpo train experiment=smoke loss=dpo reference.mode=cached {ROWS} {STEPS}"),
    Case("radpo-kto", f"radpo train experiment=smoke loss=kto reference.mode=cached {ROWS} {STEPS}"),
    Case("radpo-ppo", f"radpo train experiment=smoke loss=ppo {ROWS} {STEPS}"),
    Case("radpo-sft", f"radpo train experiment=smoke loss=sft {ROWS} {STEPS}"),
    Case(
        "dtm-disperse",
        "dtm disperse method=random clusters=2 data.sets.demo.path=demo:pairs-train "
        "data.sets.demo.first=60 data.eval_fraction=0.1",
    ),
    *(
        Case(
            f"dtm-train-{cluster}",
            f"dtm train dispersal=runs/dtm-disperse cluster={cluster} model=tiny tokens.max_length=128 "
            f"model.lora.enabled=true model.lora.r=4 {OWN_STEPS}",
        )
        for cluster in (0, 1)
    ),
    Case("dtm-merge", "dtm merge models=[runs/dtm-train-0/model,runs/dtm-train-1/model]"),
    Case(
        "dtm-evaluate",
        "dtm evaluate model.name=runs/dtm-train-0/model rows=[runs/dtm-disperse/held_out.jsonl] "
        "tokens.max_length=128 resamples=100",
    ),
    Case("ama-reward", f"ama reward experiment=smoke {OWN_STEPS}"),
    Case("ama-sft", f"ama align sft model=tiny rows=[runs/more-select/selected.jsonl] {OWN_STEPS}"),
    Case(
        "ama-dpo",
        f"ama align dpo model=tiny data.sets.demo.path=demo:pairs-train data.max_rows=32 select_best=false {OWN_STEPS}",
    ),
    Case(
        "ama-raft",
        "ama align raft experiment=smoke-raft reward=runs/ama-reward/model iterations=2 prompts_per_iteration=8 n=2 "
        "max_new_tokens=8 train.trainer.num_train_epochs=1",
    ),
    Case(
        "ama-ppo",
        "ama align ppo model=tiny reward=runs/ama-reward/model prompts=demo:pairs-eval layout=chat iterations=3 "
        "prompts_per_iteration=8 update_batch_size=4 max_new_tokens=8 sampling_batch_size=4 learning_rate=0.001",
    ),
    Case("ama-average", "ama average pre=tiny:llama post=runs/ama-dpo/model alpha=0.3 shard_size=6KB"),
    Case(
        "ama-collect",
        "ama collect prompts=demo:pairs-train model.name=runs/ama-dpo/model reward=runs/ama-reward/model n=2 draw=4 "
        "sample.max_prompts=8 sample.max_new_tokens=6 filters=none min_length=1 layout=chat",
    ),
    Case(
        "ama-adapt",
        "ama adapt pre=tiny:llama post=runs/ama-dpo/model rows=runs/ama-collect/d_theta.jsonl layout=chat "
        "block_size=32 max_length=96 solver=exact exact.max_evaluations=4",
    ),
    Case(
        "ama-frontier",
        "ama frontier pre=tiny:llama post.dpo=runs/ama-dpo/model alphas=[0,0.5,1] evaluate.prompts=demo:pairs-eval "
        "evaluate.max_prompts=4 evaluate.reward=runs/ama-reward/model evaluate.layout=chat "
        "evaluate.max_new_tokens=6 resamples=100",
    ),
    Case(
        "merge", "reproalign merge models=[runs/mmpo-train/model,runs/radpo-train/model] method=linear shard_size=6KB"
    ),
    Case(
        "suite",
        "mmpo evaluate suite=ama suite.tasks=[boolq] suite.data.boolq=rows/boolq.jsonl suite.limit=4 model=tiny",
    ),
    Case("two-mmpo", f"mmpo train experiment=smoke {ROWS} {STEPS}", two=True),
    Case("two-radpo", f"radpo train experiment=smoke loss=dpo reference.mode=cached {ROWS} {STEPS}", two=True),
    Case("two-more", f"more-rm train experiment=smoke {STEPS} trainer.eval_steps=4", two=True),
)


def chosen(names: Sequence[str], cases: dict[str, Case]) -> list[Case]:
    """Return the cases whose names begin with one of ``names`` (all without names), after those they need."""
    wanted = [name for name in cases if not names or any(name.startswith(prefix) for prefix in names)]
    return [cases[name] for name in in_order(wanted, cases)]


def in_order(names: Iterable[str], cases: dict[str, Case]) -> list[str]:
    """Return the cases called ``names`` and all that they need, in an order in which they can run."""
    graph: dict[str, list[str]] = {}
    open_names = list(names)
    while open_names:
        name = open_names.pop()
        if name not in graph:
            graph[name] = cases[name].needs
            open_names += graph[name]
    order = list(TopologicalSorter(graph).static_order())
    return sorted(order, key=lambda name: order.index(name))


def write_rows(place: Path) -> None:
    """Write the rows that no command makes: a benchmark's."""
    rows = [{"question": "does the dog sleep", "passage": f"{n} hours", "idx": n, "label": n % 2} for n in range(6)]
    (place / "rows").mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (place / "rows" / "boolq.jsonl").write_text(text, encoding="utf-8")
