"""The packages of the repository, found by their folders, so that a new paper is tested as soon as it is there."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml"))
PAPERS = [package for package in PACKAGES if package.name != "common"]
# The commands: of the papers, and the core's.
CLIS = [import_module(f"reproalign.{paper.name}.cli") for paper in PAPERS]
CORE = import_module("reproalign.common.cli")
