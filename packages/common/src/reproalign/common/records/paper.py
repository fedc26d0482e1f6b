"""The paper behind a package: bibliographic data and the numbers to be reproduced."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any


@cache
def load_paper(package: str) -> dict[str, Any]:
    """Read ``paper.yaml``: inside an installed package, or two folders above its sources in a checkout.

    It is read once per process, so nobody may change it.

    Raises:
        FileNotFoundError: if there is none.
    """
    import yaml

    inside = files(package).joinpath("paper.yaml")
    if inside.is_file():
        return dict(yaml.safe_load(inside.read_text(encoding="utf-8")))
    configs = files(f"{package}.configs")
    for parent in Path(str(configs)).parents:
        if (parent / "paper.yaml").is_file():
            return dict(yaml.safe_load((parent / "paper.yaml").read_text(encoding="utf-8")))
    raise FileNotFoundError(f"{package}: paper.yaml not found")
