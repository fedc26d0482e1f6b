"""``ratios.json``: the ratios of an average; ``ama adapt`` writes it, ``ama average`` and ``ama frontier`` read it.

All ratios in it multiply the model before RLHF (``alpha_on: pre``). The release's ``mask_alphas.bin`` is read too
(:mod:`reproalign.ama.mask_alphas`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reproalign.ama.average.config import AverageConfig
from reproalign.ama.levels import HEAD
from reproalign.ama.mask_alphas import RELEASED_NAME, ReleasedAlphas, Scalar, read_alphas
from reproalign.ama.parts import Parts, parts_of_layers
from reproalign.common.errors import UserError
from reproalign.common.files import write_json
from reproalign.common.merging.headers import read_json
from reproalign.common.options.check import check_file
from reproalign.common.records.handed_on import intact

VERSION = 1
NAME = "ratios.json"


@dataclass(frozen=True)
class Ratios:
    """Ratios of an average.

    Attributes:
        level: of the parts, see :mod:`reproalign.ama.levels`.
        groups: ratio of each group, on pre.
        base: α, on pre: the ratio of what no group holds.
        means: of the ratios, over the groups and over the layers.
        epsilon: ε of the parametrisation, or None.
        tensors: rule that they were found under, see :mod:`reproalign.ama.tensors`; None: not said.
        head: its rule; None: not said.
        variant: ``paper`` or ``released``.
        found: how: data, objective, solver, steps, …
        pre: name and identity of the model before RLHF; empty: not said.
        post: of the model after.
    """

    level: str
    groups: Mapping[str, float]
    base: float
    means: tuple[float, float]
    epsilon: float | None = None
    tensors: str | None = None
    head: str | None = None
    variant: str = "paper"
    found: Mapping[str, Any] = field(default_factory=dict)
    pre: Mapping[str, str] = field(default_factory=dict)
    post: Mapping[str, str] = field(default_factory=dict)

    def of(self, parts: Parts, label: str) -> dict[str, float]:
        """Return the ratio of each group of a model's parts.

        Args:
            parts: of the model, at :attr:`level`.
            label: what messages call the file.

        Raises:
            UserError: if the groups are others, so that the ratios belong to another model.
        """
        if self.groups.keys() != set(parts.names):
            raise UserError(
                f"{label}: it holds ratios for {len(self.groups)} groups of {self.level} ({_some(self.groups)}), the "
                f"model has {len(parts.names)} ({_some(parts.names)}); the ratios are another model's"
            )
        return {name: self.groups[name] for name in parts.names}


def write_ratios(path: Path, ratios: Ratios) -> None:
    """Write ``ratios.json``, whole or not at all."""
    mean, layer_weighted = ratios.means
    content = {
        "version": VERSION,
        "alpha_on": "pre",
        "level": ratios.level,
        "groups": dict(ratios.groups),
        "base": ratios.base,
        "mean": mean,
        "layer_weighted_mean": layer_weighted,
        "epsilon": ratios.epsilon,
        "tensors": ratios.tensors,
        "head": ratios.head,
        "variant": ratios.variant,
        "found": dict(ratios.found),
        "pre": dict(ratios.pre),
        "post": dict(ratios.post),
    }
    write_json(path, content)


def ratios_path(name: str, key: str) -> Path:
    """Return the file that a user means: a file, or a run's folder that holds one.

    Raises:
        UserError: naming the ``key``, if there is none.
    """
    path = Path(name).expanduser()
    for candidate in (path, path / NAME, path / RELEASED_NAME):
        if candidate.is_file():
            return candidate
    what = f"holds neither {NAME} nor {RELEASED_NAME}" if path.is_dir() else "is no file or folder"
    raise UserError(f"{key}={name} {what}; give a run of ama adapt, or its {NAME}")


def read_ratios(name: str, key: str = "ratios", *, allow_bin: bool = False) -> Ratios:
    """Read ratios.

    Args:
        name: ``ratios.json``, ``mask_alphas.bin``, or a folder that holds one.
        key: what messages call it.
        allow_bin: read the release's pickled file, by the loader that executes nothing.

    Raises:
        UserError: for a file that is missing, of another form or version, or pickled without ``allow_bin``.
    """
    path = ratios_path(name, key)
    if path.suffix == ".bin":
        if not allow_bin:
            raise UserError(f"{path}: pickled; add allow=[bin] to read it with torch.load(weights_only=True)")
        return released_ratios(read_alphas(path), str(path))
    content = read_json(intact(path))
    if content.get("version") != VERSION:
        raise UserError(f"{path}: version {content.get('version')} of {NAME} is not known here, only {VERSION}")
    if content.get("alpha_on") != "pre":
        raise UserError(f"{path}: alpha_on is '{content.get('alpha_on')}'; ratios in files multiply pre")
    groups = content.get("groups")
    numbers = [*groups.values(), content.get("base")] if isinstance(groups, dict) and groups else [None]
    for number in numbers:
        if not _is_number(number):
            raise UserError(f"{path}: 'groups' must map names to numbers and 'base' be a number, not {number}")
    for key in ("mean", "layer_weighted_mean"):
        if not _is_number(content.get(key)):
            raise UserError(f"{path}: '{key}' is missing, or no number")
    if not isinstance(content.get("level"), str):
        raise UserError(f"{path}: 'level' is missing; it says which layers a group holds")
    for key in ("found", "pre", "post"):
        if not isinstance(content.get(key, {}), dict):
            raise UserError(f"{path}: '{key}' must be a mapping, not {content[key]}; leave it out if it is not known")
    for key in ("tensors", "head"):
        if not isinstance(content.get(key), str | None):
            raise UserError(f"{path}: '{key}' must be a word, not {content[key]}; leave it out if it is not known")
    check_file(AverageConfig, {key: content.get(key) for key in ("tensors", "head", "variant")}, path)
    return Ratios(
        level=content["level"],
        groups={name: float(ratio) for name, ratio in content["groups"].items()},
        base=float(content["base"]),
        means=(float(content["mean"]), float(content["layer_weighted_mean"])),
        **{
            key: content[key]
            for key in ("epsilon", "tensors", "head", "variant", "found", "pre", "post")
            if key in content
        },
    )


def released_ratios(alphas: ReleasedAlphas, label: str) -> Ratios:
    """Return the release's ratios of runs of layers, the level being their split points.

    Raises:
        UserError: if a layer's linear layers do not share one scalar, or the ratios are not finite.
    """
    layers: dict[int, Scalar] = {}
    for name, raw in alphas.modules.items():
        found = re.search(r"\.(\d+)\.", name)
        if found and not layers.setdefault(int(found[1]), raw).equal(raw):
            raise UserError(
                f"{label}: the linear layers of layer {found[1]} have ratios of their own (linearwise), which the "
                "release normalises by nothing: they come out as NaN"
            )
    order = [layers[layer] for layer in sorted(layers)]
    # Scalars of one group are one object, saved once.
    pivots = [index for index in range(len(order) - 1) if not _same(order[index], order[index + 1])]
    level = "#".join(map(str, pivots)) or "block1"
    parts = parts_of_layers(level, len(order))
    firsts = [0, *(pivot + 1 for pivot in pivots)]
    groups = {name: float(alphas.ratio(order[first])) for name, first in zip(parts.names, firsts, strict=True)}
    if not all(map(math.isfinite, groups.values())):
        raise UserError(f"{label}: its ratios are not finite")
    means = parts.means(list(groups.values()))
    head = alphas.normaliser.get(HEAD)
    found_head = {} if head is None else {"head": float(alphas.ratio(head))}
    return Ratios(
        level,
        groups,
        alphas.init,
        means,
        epsilon=alphas.epsilon,
        tensors="linear_head_pre",
        head="base",
        variant="released",
        found={"file": Path(label).name, **found_head},
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _same(left: Scalar, right: Scalar) -> bool:
    return left.data_ptr() == right.data_ptr()


def _some(names: Any) -> str:
    listed = list(names)
    return ", ".join(listed[:4]) + (", …" if len(listed) > 4 else "")
