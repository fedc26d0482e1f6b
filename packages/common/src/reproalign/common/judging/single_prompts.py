"""The prompts of single-answer grading: MT-Bench's from the user's copy of FastChat's file, or this project's own.

The published scores rest on the published prompts, which are other people's text: ``prompts=judge_prompts.jsonl`` reads
them from FastChat's file. The prompts below were written here, and scores that rest on them are not comparable with
published ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from string import Formatter
from typing import Any

from reproalign.common.data.reading import local_path, read_local
from reproalign.common.errors import UserError
from reproalign.common.files import sha256_json

Kind = tuple[bool, int]  # with a reference answer, turn
NAMES: dict[Kind, str] = {  # FastChat's
    (False, 1): "single-v1",
    (True, 1): "single-math-v1",
    (False, 2): "single-v1-multi-turn",
    (True, 2): "single-math-v1-multi-turn",
}
FIELDS: dict[Kind, tuple[str, ...]] = {
    (False, 1): ("question", "answer"),
    (True, 1): ("question", "answer", "ref_answer_1"),
    (False, 2): ("question_1", "question_2", "answer_1", "answer_2"),
    (True, 2): ("question_1", "question_2", "answer_1", "answer_2", "ref_answer_1", "ref_answer_2"),
}
_OWN_SYSTEM = "You grade the work of AI assistants. You are fair, strict and brief."
_OWN_SCALE = (
    "Give a few sentences of reasons first. Length and a confident tone earn nothing by themselves. Then give a whole "
    "number from 1 (useless) to 10 (nothing left to wish for) in double square brackets, and nothing after it, such as "
    "[[4]].\n\n"
)
_OWN_FIRST = "=== The user asked ===\n{question}\n\n"
_OWN_ANSWER = "=== The assistant answered ===\n{answer}\n"
_OWN_BOTH = (
    "=== The user asked ===\n{question_1}\n\n=== The assistant answered ===\n{answer_1}\n\n"
    "=== Then the user asked ===\n{question_2}\n\n=== The assistant answered ===\n{answer_2}\n"
)
_OWN_TASKS: dict[Kind, str] = {
    (False, 1): "How good is the answer below: does it do what was asked, and is what it says right?\n" + _OWN_SCALE,
    (True, 1): "Is the answer below right? Compare it with the reference solution and name its first mistake.\n"
    + _OWN_SCALE,
    (False, 2): "Grade the second answer of the dialogue below. The first one is context.\n" + _OWN_SCALE,
    (True, 2): "Grade the second answer of the dialogue below. The first one is context. Compare it with the reference "
    "solutions and name its first mistake.\n" + _OWN_SCALE,
}
_OWN_TEXTS: dict[Kind, str] = {
    (False, 1): _OWN_FIRST + _OWN_ANSWER,
    (True, 1): _OWN_FIRST + "=== Reference solution ===\n{ref_answer_1}\n\n" + _OWN_ANSWER,
    (False, 2): _OWN_BOTH,
    (True, 2): "=== Reference solution, first question ===\n{ref_answer_1}\n\n"
    "=== Reference solution, second question ===\n{ref_answer_2}\n\n" + _OWN_BOTH,
}


@dataclass(frozen=True)
class JudgePrompt:
    """What a judge is told: a system turn, and a template of the user's turn with the fields of its kind."""

    name: str
    system: str
    template: str


OWN_PROMPTS = {
    kind: JudgePrompt(f"reproalign-{name}", _OWN_SYSTEM, _OWN_TASKS[kind] + _OWN_TEXTS[kind])
    for kind, name in NAMES.items()
}


def read_prompts(path: str) -> dict[Kind, JudgePrompt]:
    """Read the four prompts of single-answer grading from a file in FastChat's format, by their names there.

    Raises:
        UserError: naming the prompt that is missing, or that has another field than it gets.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for row in read_local(local_path(path, key="prompts")):
        if row.problem or not all(isinstance(row.values.get(key), str) for key in ("name", "prompt_template")):
            raise UserError(f"{row.place}: {row.problem or 'name and prompt_template (texts) are needed'}")
        found[row.values["name"]] = row.values
    prompts = {}
    for kind, name in NAMES.items():
        if name not in found:
            raise UserError(
                f"prompts={path}: no prompt '{name}'; give FastChat's judge_prompts.jsonl, which has "
                f"{', '.join(NAMES.values())}"
            )
        values = found[name]
        template = values["prompt_template"]
        check_fields(template, FIELDS[kind], f"prompts={Path(path).name}: prompt '{name}'")
        prompts[kind] = JudgePrompt(name, str(values.get("system_prompt") or ""), template)
    return prompts


def check_fields(template: str, fields: tuple[str, ...], place: str) -> None:
    """Refuse a template without one of its fields, or with others.

    Raises:
        UserError: naming the place and the field.
    """
    try:
        given = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise UserError(f"{place} is no template ({error}); write a brace of the text twice") from error
    for name in sorted(given ^ set(fields)):
        what = "an unknown field" if name in given else "no field"
        raise UserError(f"{place} has {what} {{{name}}}; its fields are {', '.join(f'{{{one}}}' for one in fields)}")


def prompts_digest(prompts: Mapping[Kind, JudgePrompt]) -> str:
    """Return the SHA-256 of the prompts in use."""
    return sha256_json([asdict(prompts[kind]) for kind in NAMES])
