"""The options of a dispersal, checked, with what ``null`` stands for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from reproalign.common.errors import UserError, choose
from reproalign.dtm.disperse.config import DisperseConfig
from reproalign.dtm.disperse.sets import DataSet, parse_sets

METHODS = ("random", "random_equal", "kmeans", "labels")


@dataclass(frozen=True)
class Settings:
    """What a dispersal does.

    Attributes:
        config: the options as given.
        sets: what is read.
        method: one of METHODS.
        on_error: ``skip`` or ``raise``.
    """

    config: DisperseConfig
    sets: list[DataSet]
    method: str
    on_error: str

    @property
    def released(self) -> bool:
        """Whether the released scripts are followed."""
        return self.config.variant == "released"


def resolve(config: DisperseConfig) -> Settings:
    """Check every option that can be checked without data or model.

    Raises:
        UserError: naming the key, its value and what is allowed.
    """
    released = choose("variant", config.variant, ["paper", "released"]) == "released"
    method = config.method or ("random" if released else "random_equal")
    choose("method", method, METHODS)
    if config.clusters < 1:
        raise UserError(f"clusters={config.clusters} must be at least 1")
    _check_data(config, released)
    if (method == "labels") != (config.labels is not None):
        raise UserError("method=labels and labels=FILE go together; give both or neither")
    if config.labels is not None and not Path(config.labels).expanduser().is_file():
        raise UserError(f"labels={config.labels}: no such file; check the path")
    on_error = config.data.on_error or ("raise" if released else "skip")
    return Settings(config, parse_sets(config.data.sets), method, on_error)


def _check_data(config: DisperseConfig, released: bool) -> None:
    data = config.data
    choose("data.system", data.system, ["drop", "keep"])
    if released and data.system == "keep":
        raise UserError("data.system=keep: the release drops system texts; set variant=paper to keep them")
    if data.on_error is not None:
        choose("data.on_error", data.on_error, ["skip", "raise"])
    if not 0 <= data.eval_fraction < 1:
        raise UserError(f"data.eval_fraction={data.eval_fraction} must be at least 0 and below 1")
