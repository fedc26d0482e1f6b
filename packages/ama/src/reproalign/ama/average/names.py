"""The release's notation of averages in the name of a folder: ``pma_{α}_{tag}_split|10#20|0.4|0.3|0.2_{tag}``.

``weight_interpolation.py`` takes the second to last piece of its save path, cut at ``_``. If that holds ``split`` the
average is part-wise: split points (upper ends, included) and ratios, between ``|``. Anything else is a plain average,
also a name that was meant otherwise and has one ``_`` too many.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePath

from reproalign.common.errors import UserError

LAYER = re.compile(r"model\.layers\.(\d+)\.")
FORM = "write pma_0.2_TAG_split|10#20|0.4|0.3|0.2_TAG, or ma_0.2_TAG_TAG"


@dataclass(frozen=True)
class LegacyName:
    """What a name says.

    Attributes:
        method: the piece that says it.
        pivots: split points.
        ratios: of the parts, on pre; empty for a plain average.
        head_post: ``split0``: the head is taken from post.
    """

    method: str
    pivots: tuple[int, ...] = ()
    ratios: tuple[float, ...] = ()
    head_post: bool = False

    @property
    def part_wise(self) -> bool:
        """There are parts."""
        return bool(self.ratios)

    @property
    def level(self) -> str:
        """The parts, as ``parts`` takes them."""
        return "#".join(map(str, self.pivots))

    def part(self, layer: int) -> int:
        """Return the part of a layer: the last split point below it counts, in whatever order they stand."""
        passed = [part for part, pivot in enumerate(self.pivots, 1) if layer > pivot]
        return passed[-1] if passed else 0

    def ratio(self, key: str, alpha: float) -> float:
        """Return the ratio of a tensor on pre, as the release's ``merge_direct`` and ``merge_split`` do.

        Keys are read as Llama's: what is not under ``model.layers`` has the first ratio, but for ``lm_head`` and
        whatever is called ``norm``, which have α.

        Args:
            key: of the state dict.
            alpha: α.
        """
        if not self.part_wise:
            return alpha
        layer = LAYER.match(key)
        if layer:
            return self.ratios[self.part(int(layer[1]))]
        if self.head_post and "lm_head" in key:
            return 0.0
        return alpha if "lm_head" in key or "norm" in key else self.ratios[0]


def read_released_name(path: str) -> LegacyName:
    """Read a save path as ``weight_interpolation.py`` does, with everything that it takes for a plain average.

    Raises:
        UserError: where the release fails: no ``_``, split points or ratios that are no numbers or too few.
    """
    pieces = path.split("_")
    if len(pieces) < 2:
        raise UserError(f"name={path}: no '_' in it; {FORM}")
    method = pieces[-2]
    if "split" not in method:
        return LegacyName(method)
    fields = method.split("|")
    try:
        pivots = tuple(map(int, fields[1].split("#")))
        ratios = tuple(map(float, fields[2:]))
    except (IndexError, ValueError) as error:
        raise UserError(f"name={path}: '{method}' does not hold split points and ratios; {FORM}") from error
    if len(ratios) != len(pivots) + 1:
        raise UserError(
            f"name={path}: {len(ratios)} ratios for the {len(pivots) + 1} parts of {len(pivots)} split points; {FORM}"
        )
    return LegacyName(method, pivots, ratios, "split0" in method)


def read_name(path: str) -> LegacyName:
    """Read a save path, refusing what the release silently takes for a plain average.

    Raises:
        UserError: also for a ``|`` or ``split`` elsewhere than in the second to last piece, or a name that begins with
            ``pma`` and has no parts.
    """
    name = read_released_name(path)
    base = PurePath(path).name
    if not name.part_wise and ("|" in base or "split" in base or base.startswith("pma")):
        raise UserError(
            f"name={path}: the parts must stand between the last two '_', or the release takes the name for a plain "
            f"average (variant=released does so); {FORM}"
        )
    return name


def alpha_of_name(path: str) -> float | None:
    """Return the α that a name begins with, or None."""
    found = re.match(r"p?ma_([^_]+)_", PurePath(path).name)
    try:
        return float(found[1]) if found else None
    except ValueError:
        return None
