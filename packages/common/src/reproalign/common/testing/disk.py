"""A disk that is full."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock


@contextmanager
def file_limit(space: int) -> Iterator[None]:
    """Let no file exceed ``space`` bytes that this process and those it starts write in this block (``RLIMIT_FSIZE``).

    They write no bytecode: Python leaves what is cut off in its environment, for every later import to fail.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with mock.patch.object(sys, "dont_write_bytecode", True), mock.patch.dict(os.environ, PYTHONDONTWRITEBYTECODE="1"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (space, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
