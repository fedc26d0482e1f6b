"""AlpacaEval's file format: a JSON list of {instruction, output, generator}."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from reproalign.common.data.reading import read_local
from reproalign.common.data.records import Message
from reproalign.common.errors import UserError
from reproalign.common.files import write_json


class Output(TypedDict):
    """One model's response to one instruction."""

    instruction: str
    output: str
    generator: str


def write_outputs(path: Path, instructions: Sequence[str], outputs: Sequence[str], generator: str) -> None:
    """Write the responses of the model ``generator``."""
    write_json(
        path,
        [
            Output(instruction=instruction, output=output, generator=generator)
            for instruction, output in zip(instructions, outputs, strict=True)
        ],
    )


def read_outputs(path: Path) -> list[Output]:
    """Read a file of responses; JSON lines are read as well.

    Raises:
        UserError: naming the row that is none.
    """
    outputs = []
    for row in read_local(path):
        for name in ("instruction", "output", "generator"):
            if row.problem or not isinstance(row.values.get(name), str):
                raise UserError(f"{row.place}: {row.problem or f'column {name!r} (text) is missing'}")
        outputs.append(Output(**{name: row.values[name] for name in Output.__annotations__}))  # type: ignore[typeddict-item]
    return outputs


def after_last(text: str, marker: str) -> str:
    """Return what follows the last ``marker`` in a text; all of it where there is none."""
    return text.rpartition(marker)[2]


def instruction_text(prompt: list[Message]) -> str:
    """Return what AlpacaEval's file calls the instruction: the one turn's text, or the turns with their roles."""
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)


def check_same_instructions(first: Sequence[Output], second: Sequence[Output]) -> None:
    """Check that two models answered the same instructions in the same order.

    Raises:
        UserError: naming the first row that differs.
    """
    for number, (left, right) in enumerate(zip(first, second, strict=False), start=1):
        if left["instruction"] != right["instruction"]:
            raise UserError(
                f"row {number}: the two files have different instructions ({_short(left)} and {_short(right)}); both "
                "models must answer the same ones in the same order"
            )
    if len(first) != len(second):
        raise UserError(
            f"the two files have {len(first)} and {len(second)} instructions; both models must answer the same ones"
        )


def _short(output: Output) -> str:
    text = " ".join(output["instruction"].split())
    return repr(text if len(text) <= 40 else f"{text[:39]}…")
