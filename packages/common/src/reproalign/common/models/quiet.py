"""transformers without what says nothing to the user: bars of shards, notes on file systems, colours in files."""

from __future__ import annotations

import logging
import re
import sys
from functools import cache

from huggingface_hub.utils import enable_progress_bars  # type: ignore[attr-defined]  # a lazy export
from transformers.utils import logging as transformers_logging

COLOURS = re.compile(r"\x1b\[[0-9;]*m")
NOISE = ("mtime may not be reliable",)


@cache
def quiet_transformers() -> None:
    """Turn off bars for reading and writing weights, and clean what is logged; downloads keep their bars."""
    transformers_logging.disable_progress_bar()
    enable_progress_bars()
    for handler in logging.getLogger("transformers").handlers:
        handler.addFilter(_clean)


def _clean(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    if not sys.stderr.isatty():
        record.msg, record.args = COLOURS.sub("", text), ()
    return not text.startswith(NOISE)
