"""transformers without what says nothing to the user: bars of shards, notes on file systems, colours in files."""

from __future__ import annotations

import logging
import re
import sys
from functools import cache

from huggingface_hub.utils import enable_progress_bars  # type: ignore[attr-defined]  # a lazy export
from transformers.utils import logging as transformers_logging

from reproalign.common.console import has_bars

COLOURS = re.compile(r"\x1b\[[0-9;]*m")
NOISE = ("mtime may not be reliable",)
# Of a report on loaded weights: the output heads of a language model and of a reward model, of which each has its own.
HEADS = {("lm_head.weight", "UNEXPECTED"), ("embed_out.weight", "UNEXPECTED"), ("score.weight", "MISSING")}


@cache
def quiet_transformers() -> None:
    """Turn off bars for reading and writing weights, and clean what is logged; downloads keep their bars."""
    transformers_logging.disable_progress_bar()
    if has_bars():
        enable_progress_bars()
    for handler in logging.getLogger("transformers").handlers:
        handler.addFilter(_clean)


def _clean(record: logging.LogRecord) -> bool:
    text = COLOURS.sub("", record.getMessage())
    if not sys.stderr.isatty():
        record.msg, record.args = text, ()
    differing = re.findall(r"^(\S+) +\| ([A-Z]{2,})", text, re.MULTILINE) if "LOAD REPORT" in text else []
    return not text.startswith(NOISE) and not (differing and HEADS.issuperset(differing))
