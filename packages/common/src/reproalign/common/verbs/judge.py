"""The verb ``judge``: the responses in two AlpacaEval files, compared by a language model or by PairRM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from reproalign.common.console import result_console, say
from reproalign.common.data.records import Message
from reproalign.common.errors import UserError
from reproalign.common.evaluation.alpacaeval import (
    Output,
    after_last,
    check_same_instructions,
    instruction_text,
    read_outputs,
)
from reproalign.common.files import sha256_json
from reproalign.common.generation.samples import RESPONSES, find, read_sampled
from reproalign.common.invocation import Invocation
from reproalign.common.judging.ask import (
    SIDES,
    Bout,
    both_orders,
    collect_answers,
    given_answers,
    keeping_answers,
    read_template,
    read_verdicts,
    win_table,
    write_questions,
)
from reproalign.common.judging.config import JudgeConfig, check_one_judge, check_pairrm
from reproalign.common.judging.endpoint import check_endpoint
from reproalign.common.judging.pairwise import PairwiseJudge, mean_logit_metrics, pairwise_table, read_logits
from reproalign.common.judging.verdict import TEMPLATE
from reproalign.common.records import Run


def judge(config: JudgeConfig, invocation: Invocation) -> None:
    """Compare the responses to every instruction in both orders, and tell the win rate of ``first`` against ``second``.

    ``judgments.jsonl`` grows as the judge goes, and an interrupted run goes on where it stopped; ``verdicts.jsonl`` has
    what is read in them. The judge is the endpoint's model, PairRM, or whoever gave ``answers``; without any of these,
    ``questions.jsonl`` is written for whatever will answer them.
    """
    _check(config)
    first, second = (
        _outputs(path, key, config.output_marker) for path, key in ((config.first, "first"), (config.second, "second"))
    )
    check_same_instructions(first, second)
    if not first:
        raise UserError(f"first={config.first} has no rows; give files with responses")
    first, second = first[: config.max_instructions], second[: config.max_instructions]
    bouts = [
        Bout(left["instruction"], left["output"], right["output"]) for left, right in zip(first, second, strict=True)
    ]
    template = TEMPLATE if config.template is None else read_template(config.template)
    with keeping_answers(), Run.open(invocation) as run:
        for name, outputs in zip(SIDES, (first, second), strict=True):
            run.add_fingerprint("data", name, sha256_json(outputs), path=getattr(config, name), rows=len(outputs))
        title = f"{_generators(first)} against {_generators(second)}"
        judged = _pairwise if config.pairrm.model else _asked
        result = judged(config, template, bouts, run, title)
        if result is None:
            return
        metrics, table = result
        run.set_metrics(metrics)
        result_console().print(table)
        say(f"judgments and verdicts: {run.dir}")


def _pairwise(
    config: JudgeConfig, _: str, bouts: Sequence[Bout], run: Run, title: str
) -> tuple[dict[str, Any], Table] | None:
    model = PairwiseJudge(config.pairrm)
    model.add_fingerprint(run)
    logits = model.collect_logits(bouts, run.dir / "judgments.jsonl")
    by_order, by_mean = read_logits(logits, bouts, run.dir / "verdicts.jsonl", config.confidence, config.pairrm)
    metrics = {**asdict(by_order), "mean_logit": mean_logit_metrics(by_mean)}
    return metrics, pairwise_table(by_order, by_mean, title, len(bouts), config.confidence)


def _asked(
    config: JudgeConfig, template: str, bouts: Sequence[Bout], run: Run, title: str
) -> tuple[dict[str, Any], Table] | None:
    """Return metrics and table; None if there is nobody to ask and the questions were written."""
    questions = both_orders(bouts, template)
    if config.answers:
        answers = given_answers(Path(config.answers).expanduser(), bouts)
    elif config.endpoint.model:
        answers = collect_answers(config.endpoint, questions, bouts, run.dir / "judgments.jsonl")
    else:
        path = run.dir / "questions.jsonl"
        write_questions(questions, bouts, path)
        remedy = "replace 'question' by the judge's 'answer' and give the file as answers=FILE"
        say(f"{len(questions)} questions: {path}; {remedy}")
        return None
    result = read_verdicts(answers, bouts, run.dir / "verdicts.jsonl", config.confidence)
    return asdict(result), win_table(result, title, len(bouts), config.confidence)


def _outputs(path: str, key: str, marker: str | None) -> list[Output]:
    """Read an AlpacaEval file, or the first response to each prompt of a run of ``sample``."""
    file = Path(path).expanduser()
    if file.is_dir():
        sampled = read_sampled(find(path, RESPONSES, key))
        outputs = [
            Output(instruction=_instruction(row.prompt), output=row.responses[0], generator=file.name)
            for row in sampled
        ]
    else:
        outputs = read_outputs(file)
    if marker is None:
        return outputs
    return [Output(**{**row, "output": after_last(row["output"], marker)}) for row in outputs]


def _instruction(prompt: list[Message]) -> str:
    """Return a prompt's text without the system turn, which tells the model how to answer and not what was asked."""
    return instruction_text([turn for turn in prompt if turn["role"] != "system"] or prompt)


def _check(config: JudgeConfig) -> None:
    check_one_judge(
        {"answers": config.answers, "endpoint.model": config.endpoint.model, "pairrm.model": config.pairrm.model}
    )
    if config.pairrm.model and config.template:
        raise UserError("template is for a judge that reads questions, and PairRM reads none; leave template out")
    check_endpoint(config.endpoint)
    check_pairrm(config.pairrm)


def _generators(outputs: list[Output]) -> str:
    return ", ".join(dict.fromkeys(output["generator"] for output in outputs))
