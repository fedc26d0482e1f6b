"""Options of the whole test run."""

from __future__ import annotations

import pytest
from hypothesis import settings

# The same examples everywhere, and no verdict by the clock.
settings.register_profile("reproalign", derandomize=True, deadline=None)
settings.load_profile("reproalign")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden", metavar="DIR", help="folder of golden vectors (default: the one beside the repository)"
    )
