"""Objects that are named by a text, so that naming them imports nothing."""

from __future__ import annotations

import importlib
from typing import Any


def load_object(path: str) -> Any:
    """Import what ``module:name`` stands for."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
