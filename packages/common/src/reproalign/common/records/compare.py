"""Do two records agree?"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from reproalign.common.mappings import flatten
from reproalign.common.records.fingerprints import identity_of

# Measures of the machine, not of the method.
TIMING = ("runtime", "per_second", "seconds", "flos", "memory")
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@dataclass
class Comparison:
    """What two records agree and disagree in."""

    agreed: list[str] = field(default_factory=list)
    differing: list[tuple[str, Any, Any]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


def compare(
    left: dict[str, Any], right: dict[str, Any], *, tolerance: float = 0.0, ignore: tuple[str, ...] = ()
) -> Comparison:
    """Compare the final metrics number by number, those of runs that they started too, and the fingerprints exactly.

    Two numbers agree when |a - b| <= tolerance * max(1, |a|, |b|); NaN agrees with NaN. With a positive tolerance the
    fingerprints of weights are ignored, since close weights have unrelated fingerprints. A metric that one record
    lacks is a difference.

    Args:
        left: a record.
        right: another.
        tolerance: relative, absolute below 1.
        ignore: metric names (or ``weights``, ``data``) to ignore.
    """
    result = Comparison()
    first, second = flatten(left.get("metrics", {}), "metrics"), flatten(right.get("metrics", {}), "metrics")
    for kind in ("data", "weights"):
        for side, record in ((first, left), (second, right)):
            for name, entry in record.get("fingerprints", {}).get(kind, {}).items():
                side[f"{kind}.{name}"] = identity_of(entry)
    if all("tokens" in record for record in (left, right)):  # older records have none
        first["tokens"], second["tokens"] = (record["tokens"]["sha256"] for record in (left, right))
    children = [record.get("children", {}) for record in (left, right)]
    if all("metrics" in child for entries in children for child in entries.values()):  # older records have none
        for side, entries in zip((first, second), children, strict=True):
            side |= flatten({f"children.{name}": child["metrics"] for name, child in entries.items()})
    for key in sorted(first.keys() | second.keys()):
        kind = key.split(".")[0]
        timing = kind in ("metrics", "children") and any(word in key for word in TIMING)
        inexact = tolerance > 0 and kind == "weights"
        named = (key, key.removeprefix("metrics."), kind)
        if timing or inexact or any(word in named or _is_childs(key, word) for word in ignore):
            result.ignored.append(key)
        elif key in first and key in second and agrees(first[key], second[key], tolerance):
            result.agreed.append(key)
        else:
            result.differing.append((key, first.get(key, "missing"), second.get(key, "missing")))
    return result


def _is_childs(key: str, metric: str) -> bool:
    return key.startswith("children.") and key.endswith(f".{metric}")


def agrees(left: Any, right: Any, tolerance: float) -> bool:
    """Say whether two recorded values agree (see :func:`compare`)."""
    left, right = (_NON_FINITE.get(value, value) if isinstance(value, str) else value for value in (left, right))
    if isinstance(left, int | float) and isinstance(right, int | float):
        if not (math.isfinite(left) and math.isfinite(right)):
            return left == right or (math.isnan(left) and math.isnan(right))
        return left == right or abs(left - right) <= tolerance * max(1.0, abs(left), abs(right))
    return bool(left == right)
