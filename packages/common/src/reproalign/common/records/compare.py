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
    """Compare the final metrics number by number, and the fingerprints exactly.

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
    for key in sorted(first.keys() | second.keys()):
        timing = key.startswith("metrics.") and any(word in key for word in TIMING)
        inexact = tolerance > 0 and key.startswith("weights.")
        if timing or inexact or any(word in (key, key.removeprefix("metrics."), key.split(".")[0]) for word in ignore):
            result.ignored.append(key)
        elif key in first and key in second and agrees(first[key], second[key], tolerance):
            result.agreed.append(key)
        else:
            result.differing.append((key, first.get(key, "missing"), second.get(key, "missing")))
    return result


def agrees(left: Any, right: Any, tolerance: float) -> bool:
    """Say whether two recorded values agree (see :func:`compare`)."""
    left, right = (_NON_FINITE.get(value, value) if isinstance(value, str) else value for value in (left, right))
    if isinstance(left, int | float) and isinstance(right, int | float):
        if not (math.isfinite(left) and math.isfinite(right)):
            return left == right or (math.isnan(left) and math.isnan(right))
        return left == right or abs(left - right) <= tolerance * max(1.0, abs(left), abs(right))
    return bool(left == right)
