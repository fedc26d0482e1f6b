"""Options and fixtures of the whole test run, and the check of every type in it."""

from __future__ import annotations

import gc
import itertools
import os
import sys
from pathlib import Path

import pytest
from beartype import BeartypeConf
from beartype.claw import beartype_package
from hypothesis import settings
from jaxtyping import install_import_hook

# The same examples everywhere, and no verdict by the clock.
settings.register_profile("reproalign", derandomize=True, deadline=None)
settings.load_profile("reproalign")

os.environ["MATPLOTLIBRC"] = str(Path(__file__).parent / "tests" / "matplotlibrc")


# Functions of modules that name shapes are held to them, which takes longer; those of all others to their types alone.
SOURCES = {
    path.relative_to(src): path for src in Path(__file__).parent.glob("packages/*/src") for path in src.rglob("*.py")
}
SHAPED = [
    ".".join(name.with_suffix("").parts).removesuffix(".__init__")
    for name, path in SOURCES.items()
    if "from jaxtyping import" in path.read_text(encoding="utf-8")
]
install_import_hook(SHAPED, "beartype.beartype")
beartype_package("reproalign", conf=BeartypeConf(claw_is_pep526=False))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden", metavar="DIR", help="folder of golden vectors (default: the one beside the repository)"
    )


FROZEN = [0]  # modules


def pytest_runtest_setup() -> None:
    """Leave modules out of garbage collections: a training asks for one at its end, and they are a million objects."""
    if len(sys.modules) > FROZEN[0] + 100:
        gc.collect()
        gc.freeze()
        FROZEN[0] = len(sys.modules)


CACHES = itertools.count()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees what another prepared."""
    monkeypatch.setenv("REPROALIGN_CACHE", str(tmp_path_factory.getbasetemp() / "caches" / str(next(CACHES))))


@pytest.fixture
def ticks():
    """Pictures have their ticks, as users see them."""
    import matplotlib

    with matplotlib.rc_context(
        dict.fromkeys(("xtick.bottom", "xtick.labelbottom", "ytick.left", "ytick.labelleft"), True)
    ):
        yield
