"""Every test has a cache folder of its own, so that no test sees what another prepared."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPROALIGN_CACHE", str(tmp_path_factory.mktemp("cache")))
