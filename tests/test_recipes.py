"""Recipes of every paper: a family says once what its members share, and a variant's keys go with it."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest
import yaml

from papers import CLIS
from reproalign.common.command.recipes import OF_FAMILY, parse_header, read_headers
from reproalign.common.errors import UserError
from reproalign.common.testing import composed
from reproalign.radpo import cli as radpo

PAPERS = pytest.mark.parametrize("paper", CLIS, ids=lambda paper: paper.APP.command)


def test_a_recipe_leaves_to_its_family_what_no_table_row_is_about():
    headers = read_headers(radpo.APP.package)
    assert "_run" not in headers
    of_family, own = headers["hh-pythia-1.4b-dpo"], headers["hh-pythia-1.4b-ppo"]
    assert (of_family["verb"], of_family["processes"], of_family["global_batch"]) == ("train", "4", "16")
    assert (own["verb"], own["processes"], own["global_batch"]) == ("train", "1", "4")


def stated(package, name):
    """What a file of recipes states itself, and what the files that it builds on state."""
    text = files(f"{package}.configs").joinpath("experiment", f"{name}.yaml").read_text(encoding="utf-8")
    content, header = yaml.safe_load(text), parse_header(text)
    own = {("#", key): header[key] for key in OF_FAMILY if key in header}
    given = {}
    for base in content.pop("defaults", []):
        if isinstance(base, str) and "@" not in base:
            given |= {key: value for part in stated(package, base) for key, value in part.items()}
        elif isinstance(base, dict):
            own |= {("defaults", *key): value for key, value in leaves(base)}
    return given, own | dict(leaves(content))


def leaves(node, *path):
    for key, value in node.items():
        yield from leaves(value, *path, key) if isinstance(value, dict) and value else [((*path, key), value)]


@PAPERS
def test_a_recipe_says_nothing_again_that_its_family_says(paper):
    for name in read_headers(paper.APP.package):
        given, own = stated(paper.APP.package, name)
        assert not [key for key in own.keys() & given.keys() if own[key] == given[key]], name


@PAPERS
def test_a_recipe_writes_a_folder_of_its_own_below_its_papers_and_reads_none_of_another_paper(paper):
    package = paper.APP.package
    place = f"runs/{package.rpartition('.')[2]}/"
    for name in read_headers(package):
        given, own = stated(package, name)
        assert own["output_dir",] == f"{place}{name}"
        named = re.findall(r"\bruns/[\w.-]+/?", str([*given.values(), *own.values()]))
        assert {folder for folder in named if folder != place} == set(), name


def test_what_one_variant_alone_reads_is_left_out_of_a_recipe_under_the_other():
    name = "hh-pythia-1.4b-dpo"
    assert composed(radpo.APP, f"experiment={name}")["released"] == {"processes": 4, "accumulation": 4}
    assert composed(radpo.APP, f"experiment={name}", "variant=paper")["released"]["accumulation"] is None
    with pytest.raises(UserError, match=r"released\.accumulation is read by variant=released alone"):
        composed(radpo.APP, f"experiment={name}", "variant=paper", "released.accumulation=2")
