"""What the packages export: every name is there, quick to import, and docs/python.md's programs run."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys

import pytest

from papers import PACKAGES, ROOT

PAGE = ROOT / "docs" / "python.md"
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
EXPORTING = [*(package.name for package in PACKAGES), "common.logprobs", "common.merging"]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda text: next(line for line in text.splitlines()[::-1] if line))
def test_a_program_of_the_page_runs_and_is_short(program):
    assert len([line for line in program.splitlines() if line]) <= 15
    exec(compile(program, str(PAGE), "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("package", EXPORTING)
def test_every_exported_name_is_there_and_is_on_the_page(package):
    module = importlib.import_module(f"reproalign.{package}")
    assert all(getattr(module, name) is not None for name in module.__all__)
    assert f"`reproalign.{package}`" in PAGE.read_text(encoding="utf-8")
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_importing_the_packages_loads_no_torch():
    names = ", ".join(f"reproalign.{package}" for package in EXPORTING)
    names += ", reproalign.radpo.config, reproalign.mmpo.config"  # --help reads the objectives' options
    code = f"import sys, {names}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
