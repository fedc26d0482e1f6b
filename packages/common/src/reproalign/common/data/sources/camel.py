"""CAMEL's subject data: a problem and its solution."""

from __future__ import annotations

from typing import Any

from reproalign.common.data.records import Prompt, assistant, column, user
from reproalign.common.data.sources.registry import source


@source("camel", "message_1", "message_2", hub="camel-ai/physics")
def camel(row: dict[str, Any]) -> Prompt:
    """CAMEL. Columns: message_1 (problem), message_2 (solution)."""
    return Prompt([user(column(row, "message_1"))], [[assistant(column(row, "message_2"))]])
