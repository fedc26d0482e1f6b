"""Nested mappings with dotted keys."""

from __future__ import annotations

from typing import Any


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings: ``{"loss": {"beta": 1}}`` becomes ``{"loss.beta": 1}``."""
    if not isinstance(config, dict) or not config:
        return {prefix: config} if prefix else {}
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
