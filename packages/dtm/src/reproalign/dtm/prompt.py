"""The Alpaca prompt that DTM trains with, byte for byte the release's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TASK = "Below is an instruction that describes a task"
_CONTEXT = ", paired with an input that provides further context"
_ANSWER = ". Write a response that appropriately completes the request."


def alpaca(row: Mapping[str, Any]) -> tuple[str, str]:
    r"""Return the prompt and the response of a row.

    The prompt ends with ``### Response:``, and the response follows at once: no space, no newline. An ``input`` that is
    empty, null, 0 or missing gives the form without it. Values are inserted as they are, braces included.

    Args:
        row: ``instruction`` and ``output``, maybe ``input``.

    Raises:
        KeyError: if ``instruction`` or ``output`` is missing.
    """
    given = row.get("input")
    context, part = (_CONTEXT, f"\n\n### Input:\n{given}") if given else ("", "")
    prompt = f"{_TASK}{context}{_ANSWER}\n\n### Instruction:\n{row['instruction']}{part}\n\n### Response:"
    return prompt, row["output"]
