"""Options and fixtures of the whole test run."""

from __future__ import annotations

import gc

import pytest
from hypothesis import settings

# The same examples everywhere, and no verdict by the clock.
settings.register_profile("reproalign", derandomize=True, deadline=None)
settings.load_profile("reproalign")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden", metavar="DIR", help="folder of golden vectors (default: the one beside the repository)"
    )


def pytest_collection_finish() -> None:
    """Leave all modules out of garbage collections: a training asks for one at its end, and they are a million."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees what another prepared."""
    monkeypatch.setenv("REPROALIGN_CACHE", str(tmp_path_factory.mktemp("cache")))
