"""What a set of numbers says of a paper's claim, instance by instance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable


@runtime_checkable
class Effect(Protocol):
    """One instance of a claim; a paper measures it in its own way."""

    @property
    def label(self) -> str:
        """What it is about: a benchmark, an algorithm, a domain."""

    @property
    def met(self) -> bool:
        """Whether the numbers bear the instance out."""

    @property
    def clear(self) -> bool | None:
        """Whether its distance from 0 is more than noise; None where the noise is not known."""

    @property
    def text(self) -> str:
        """What is shown of it."""

    def values(self) -> Mapping[str, Any]:
        """Return its numbers by column, the same columns for every instance; None: not known."""


E = TypeVar("E", bound=Effect)


@dataclass(frozen=True)
class Finding(Generic[E]):
    """What a set of numbers says of a claim.

    Attributes:
        effects: one for each instance; none if the claim could not be tested.
        missing: what could not be tested, and why.
        notes: what was measured beside, which decides nothing.
        mean: of the effects' values, where one number sums them up.
    """

    effects: list[E] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    mean: float | None = None

    @property
    def met(self) -> int:
        """Instances that are borne out."""
        return sum(effect.met for effect in self.effects)

    @property
    def holds(self) -> str:
        """``3 of 4``, or ``not testable``."""
        return f"{self.met} of {len(self.effects)}" if self.effects else "not testable"

    @property
    def verdict(self) -> str:
        """``supported``, ``contradicted``, ``in part`` or ``not testable``."""
        if not self.effects:
            return "not testable"
        return "supported" if self.met == len(self.effects) else "in part" if self.met else "contradicted"


def joined(findings: Iterable[Finding[E]]) -> Finding[E]:
    """Put the findings of a claim's checks together; what is missing twice is named once."""
    listed = list(findings)
    return Finding(
        [effect for finding in listed for effect in finding.effects],
        list(dict.fromkeys(text for finding in listed for text in finding.missing)),
        [text for finding in listed for text in finding.notes],
    )
