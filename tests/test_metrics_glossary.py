"""docs/metrics.md explains every name that the recorded runs logged or recorded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
KNOWN_BY_CONTEXT = {"record", "model", "seed", "steps", "error", "sft", "iteration"}  # no measures


def names(metrics: dict[str, Any]) -> Iterator[str]:
    for name, value in metrics.items():
        if isinstance(value, dict):
            yield from names(value)
        else:
            yield name


def recorded() -> set[str]:
    found: set[str] = set()
    for file in (ROOT / "results").rglob("*.jsonl"):
        if file.name.endswith("metrics.jsonl"):
            found |= {name for line in file.read_text("utf-8").splitlines() for name in json.loads(line)}
    for file in (ROOT / "results").rglob("*run.json"):
        found |= set(names(json.loads(file.read_text("utf-8")).get("metrics") or {}))
    return found


def test_every_recorded_metric_is_explained():
    text = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    explained = set(re.findall(r"`([^`]+)`", text))
    domains = {"helpful", "harmless", "oasst1", "summarize", "webgpt"}
    assert len(recorded()) > 100
    for name in sorted(recorded() - KNOWN_BY_CONTEXT):
        if name.isdigit() or name.startswith("quantile_0") or name == "quantile_1":
            continue
        plain = name.removeprefix("eval_").removesuffix("_stderr").removesuffix("_std")
        plain = re.sub(r"_(5|10|20)(?=$|_calibrated)", "_N", plain)
        first, _, last = plain.partition("/")
        plain = f"{first}/DOMAIN" if last in domains else plain
        accepted = {name, plain, f"eval_{plain}", first if last in domains else plain}
        assert accepted & explained, f"{name} is not explained in docs/metrics.md"
