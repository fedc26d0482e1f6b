"""Sections that are chosen by their names: whose keys there are, what the files' values become, and the value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from omegaconf import OmegaConf

from reproalign.common.errors import UserError
from reproalign.common.invocation import read_back
from reproalign.common.options import one_of, option
from reproalign.common.options.check import check
from reproalign.common.options.choices import built, named, opened, specialised
from reproalign.common.options.keys import known_keys


@dataclass(frozen=True)
class Round:
    radius: float = option(1.0, above=0, help="radius")


@dataclass(frozen=True)
class Square:
    side: float = option(2.0, above=0, help="side")
    corner: Any = one_of(f"{__name__}:CORNERS", "sharp", released="blunt", help="corners")


@dataclass(frozen=True)
class Sharp:
    pass


@dataclass(frozen=True)
class Blunt:
    radius: float = option(0.1, above=0, help="of the corners")


SHAPES = {"round": Round, "square": Square}
CORNERS = {"sharp": Sharp, "blunt": Blunt}


@dataclass
class Config:
    variant: str = option("paper", help="which")
    shape: Any = one_of(f"{__name__}:SHAPES", "round", help="the shape")
    others: dict[str, int] = field(default_factory=dict)


def composed(config: dict[str, Any], **words: str) -> Any:
    """From what files say and words add, as ``compose`` goes about it."""
    named(Config, config, words)
    schema = specialised(Config, config)
    plain = OmegaConf.to_container(OmegaConf.merge(OmegaConf.structured(schema), config))
    check(schema, plain)
    return built(Config, plain)


def test_the_default_and_the_keys_are_those_of_the_chosen_class():
    assert composed({}).shape == Round()
    assert composed({"shape": {"name": "square", "side": 3}}).shape == Square(3.0, Sharp())
    config: dict[str, Any] = {}
    named(Config, config, {"shape": "square", "shape.corner": "blunt"})
    keys = ["shape.name", "shape.side", "shape.corner.name", "shape.corner.radius"]
    assert [key for key in known_keys(specialised(Config, config)) if key.startswith("shape")] == keys


def test_a_default_may_follow_the_variant():
    assert composed({"shape": {"name": "square"}}, variant="released").shape.corner == Blunt()
    assert composed({"variant": "released"}, shape="square").shape.corner == Blunt()


def test_a_word_that_names_another_class_leaves_the_files_values_out_that_it_does_not_have():
    files = {"shape": {"name": "square", "side": 3.0, "corner": {"name": "blunt", "radius": 0.5}}}
    assert composed(files, shape="round").shape == Round()


def test_unknown_names_and_values_out_of_range_are_refused_with_their_keys():
    with pytest.raises(UserError, match=r"unknown shape\.corner 'bluntt' \(did you mean 'blunt'\?\)"):
        composed({}, **{"shape": "square", "shape.corner": "bluntt"})
    with pytest.raises(UserError, match=r"shape\.radius=-1\.0 must be above 0"):
        composed({"shape": {"radius": -1.0}})


def test_files_are_read_before_the_names_are_known():
    assert OmegaConf.merge(OmegaConf.structured(opened(Config)), {"shape": {"anything": 1}}).shape.anything == 1


@pytest.mark.parametrize("config", [{}, {"shape": {}}, {"shape": {"name": "gone"}}])
def test_a_recorded_section_that_is_gone_is_said_to_be(config):
    with pytest.raises(UserError, match=r"there is no '(shape|name|gone)', by which a section is chosen"):
        read_back(f"{__name__}:Config", config)
