"""Keys that one variant alone reads: refused of a user who chose another, left out of a recipe that has them.

A field of a configuration class says it by ``metadata=of_variant("released")``. A recipe is one variant's launch; run
under the other (``experiment=NAME variant=paper``), what it sets for the first alone goes back to its default, so that
the run's record holds nothing that the run did not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints

from omegaconf import OmegaConf

from reproalign.common.errors import UserError

_OWNER = "variant"


def of_variant(name: str) -> Mapping[str, str]:
    """Return the metadata of a field that ``variant=name`` alone reads."""
    return {_OWNER: name}


def leave_out_other_variants(composed: Any, schema: type, keys: Sequence[str]) -> None:
    """Give what other variants alone read its default in ``composed``, which is changed in place.

    Args:
        composed: a configuration; without a key ``variant`` nothing is done.
        schema: its class.
        keys: that the user set.

    Raises:
        UserError: naming a key of the user that the variant does not read.
    """
    variant = OmegaConf.select(composed, _OWNER) if _OWNER in composed else None
    for key, owner, default in _owned(schema):
        if variant is None or variant == owner:
            continue
        said = next((word for word in keys if word == key or word.startswith(f"{key}.")), None)
        if said and OmegaConf.select(composed, key) != default:
            raise UserError(f"{said} is read by variant={owner} alone; leave it out")
        OmegaConf.update(composed, key, default, merge=False)


def _owned(schema: type, prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yield (key, variant, default) of the fields that belong to a variant, nested ones included."""
    hints = get_type_hints(schema)
    for field in fields(schema):
        key, hint = f"{prefix}{field.name}", hints[field.name]
        if _OWNER in field.metadata:
            default = field.default if field.default_factory is MISSING else field.default_factory()
            yield key, field.metadata[_OWNER], OmegaConf.structured(default) if is_dataclass(hint) else default
        elif is_dataclass(hint):
            yield from _owned(hint, f"{key}.")
