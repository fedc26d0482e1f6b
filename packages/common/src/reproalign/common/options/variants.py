"""Keys that one variant alone reads: refused of a user who chose another, left out of a recipe that has them.

A recipe is one variant's launch; run under the other (``experiment=NAME variant=paper``), what it sets for the first
alone goes back to its default, so that the run's record holds nothing that the run did not read.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from omegaconf import OmegaConf

from reproalign.common.errors import UserError
from reproalign.common.options.keys import keys


def leave_out_other_variants(composed: Any, schema: type, given: Collection[str]) -> None:
    """Give what other variants alone read its default in ``composed``, which is changed in place.

    Args:
        composed: a configuration; without a key ``variant`` nothing is done.
        schema: its class.
        given: keys that the user's words set.

    Raises:
        UserError: naming a key of the user that the variant does not read.
    """
    variant = composed.get("variant")
    for key, field in keys(schema):
        owner = field.option.variant if field.option else ""
        if not owner or variant in (None, owner):
            continue
        if key in given and OmegaConf.select(composed, key) != field.default:
            raise UserError(f"{key} is read by variant={owner} alone; leave it out")
        OmegaConf.update(composed, key, field.default)
