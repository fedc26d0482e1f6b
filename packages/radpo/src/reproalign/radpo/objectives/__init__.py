"""The objectives: a file each, or for close kin; a file that is put here is found, by the names in its ``__all__``.

:data:`OBJECTIVES` names them as ``loss=NAME`` does. What an objective is: :mod:`reproalign.common.training.objective`.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from reproalign.radpo.objectives.base import RadpoObjective

OBJECTIVES: dict[str, type[RadpoObjective]] = {
    objective.name: objective
    for module in (import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))
    for objective in (getattr(module, name) for name in getattr(module, "__all__", ()))
}
