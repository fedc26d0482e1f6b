"""Options declared once: what a class says of its keys is what composition checks."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import pytest
from omegaconf import OmegaConf
from transformers import TrainingArguments

from reproalign.common.config.run import TRAINER
from reproalign.common.errors import UserError
from reproalign.common.options import like, option, output_dir, section, seed, variant
from reproalign.common.options.check import check
from reproalign.common.options.compose import compose
from reproalign.common.options.keys import known_keys
from reproalign.common.options.renamed import new_choice, new_name
from reproalign.common.options.words import section_words


@dataclass
class SetConfig:
    path: str | None = option(None, help="file", null="the Hub")
    share: float = option(1.0, help="share of the rows", above=0, at_most=1)


@dataclass
class OvenConfig:
    heat: float = option(180.0, help="heat", unit="°C", at_least=0, below=300)
    mode: str = option("fan", help="how heat is moved", choices={"fan": "by air", "grill": "from above"})
    timer: bool = option(False, help="turn it off in time")
    minutes: int = option(30, help="until then", read_with=("timer", "alarm"))


@dataclass
class BakeConfig:
    output_dir: str = output_dir()
    seed: int = seed()
    variant: str = variant()
    oven: OvenConfig = section(OvenConfig, heat=200.0)
    grill: OvenConfig = section(OvenConfig)
    sets: dict[str, SetConfig] = option({}, help="data sets by name")
    shares: dict[str, float] = option({}, help="share of each", at_least=0)
    orders: list[str] = option(["a"], help="in turn", choices=("a", "b"))
    n: Any = option(1, help="how many, or several numbers", types=(int, list), at_least=1)
    epsilon: Any = option(None, help="slack", types=(float, str), at_least=0, choices=("auto",), null="none")
    template: str | None = option(None, help="form", choices=("plain",), also="a file", null="the model's")
    trials: int = like(OvenConfig, "heat", 3, help="trials", unit="")


@pytest.fixture(scope="module", autouse=True)
def bakery(tmp_path_factory):
    """A package with one primary configuration, of nothing but the class."""
    configs = tmp_path_factory.mktemp("packages") / "bakery" / "configs"
    configs.mkdir(parents=True)
    (configs / "__init__.py").touch()
    (configs / "bake.yaml").write_text("defaults: [_self_]\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(configs.parents[1])
        yield


def composed(*words: str) -> dict[str, Any]:
    return compose("bakery", "bake", f"{__name__}:BakeConfig", ["output_dir=x", *words]).config


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=-1"], "seed=-1 must be from 0 to 4294967295"),
        (["seed=1.5"], "seed=1.5 must be a whole number"),
        (["oven.heat=300"], "oven.heat=300.0 must be at least 0 and below 300"),
        (["oven.heat=nan"], "oven.heat=nan must be at least 0 and below 300"),
        (["oven.mode=gril"], "unknown oven.mode 'gril' (did you mean 'grill'?); choose one of: fan, grill"),
        (["variant=papr"], "unknown variant 'papr' (did you mean 'paper'?); choose one of: paper, released"),
        (["sets.hh.share=0"], "sets.hh.share=0.0 must be above 0 and at most 1"),
        (["sets.hh.shore=1"], "unknown key 'sets.hh.shore'"),
        (["sets.hh=3"], "sets.hh is a section; write sets.hh.KEY=3, where KEY is one of: path, share"),
        (["shares.hh=-1"], "shares.hh=-1.0 must be at least 0"),
        (["shares.hh.a=1"], "shares.hh must be a number, not a mapping"),
        (["orders=[a,c]"], "unknown orders[1] 'c'; choose one of: a, b"),
        (["n=0"], "n=0 must be at least 1"),
        (["n=[4,0]"], "n[1]=0 must be at least 1"),
        (["n=many"], "n=many must be a whole number or a list"),
        (["n=true"], "n=True must be a whole number or a list"),
        (["epsilon=-1"], "epsilon=-1 must be at least 0"),
        (["epsilon=atuo"], "unknown epsilon 'atuo' (did you mean 'auto'?); choose one of: auto"),
        (["oven.hat=1"], "unknown key 'oven.hat' (did you mean 'oven.heat'?)"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_by_its_full_name(words, message):
    with pytest.raises(UserError) as error:
        composed(*words)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_key_is_refused_while_what_turns_it_on_is_off():
    sentence = "oven.minutes is not read without oven.timer; set oven.timer too, or leave oven.minutes out"
    with pytest.raises(UserError) as error:
        composed("oven.minutes=20")
    assert str(error.value) == sentence
    assert composed("oven.minutes=20", "oven.timer=true")["oven"]["minutes"] == 20


def test_a_key_that_is_off_is_not_handed_on():
    assert section_words("oven", OvenConfig(minutes=20)) == []
    assert section_words("oven", OvenConfig(minutes=20, timer=True)) == ["oven.timer=true", "oven.minutes=20"]


def test_what_is_allowed_comes_through():
    config = composed("sets.hh.path=a file with spaces", "n=[1,2]", "epsilon=1", "template=my/form.jinja", "shares.a=2")
    assert config["sets"] == {"hh": {"path": "a file with spaces", "share": 1.0}}
    assert (config["oven"]["heat"], config["grill"]["heat"]) == (200.0, 180.0)
    assert (config["n"], config["epsilon"], config["shares"]) == ([1, 2], 1, {"a": 2.0})


def test_a_default_is_nobodys_to_share():
    BakeConfig(output_dir="x").orders.append("b")
    assert BakeConfig(output_dir="x").orders == ["a"]
    assert OmegaConf.structured(BakeConfig).orders == ["a"]


def test_keys_below_a_mapping_of_sections_have_a_name_to_choose():
    assert {"oven.heat", "sets", "sets.NAME.share", "shares"} <= set(known_keys(BakeConfig))


def test_a_choice_may_come_from_a_registry_that_is_named():
    @dataclass
    class Named:
        when: str = option("--help", help="a flag", choices="reproalign.common.command.app:FLAGS")

    check(Named, {"when": "--cfg"})
    with pytest.raises(UserError, match="unknown when '--cgf'"):
        check(Named, {"when": "--cgf"})


def test_an_option_without_a_meaning_is_no_option():
    with pytest.raises(ValueError, match="needs a help text"):
        option(1, help="")
    with pytest.raises(ValueError, match="two lower"):
        option(1, help="x", above=0, at_least=1)


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("heat", "3", "heat is now called oven.heat; write oven.heat=3"),
        ("stove.mode", "", "stove.mode is now called oven.mode; write oven.mode=VALUE"),
        ("path", "x.jsonl", "path is now called sets.NAME.path; write sets.NAME.path=x.jsonl"),
        ("gas", "1", "gas is gone: this oven is electric"),
        ("other", "1", None),
        (
            *("elsewhere", "1"),
            "elsewhere is now called key.of.another.verb, which nothing that is chosen here has; choose what has it, "
            "or leave elsewhere out",
        ),
    ],
)
def test_an_old_name_is_understood(key, value, sentence):
    renamed = {
        "heat": ("furnace.heat", "oven.heat"),
        "stove": "oven",
        "path": "sets.NAME.path",
        "gas": "this oven is electric",
        "elsewhere": "key.of.another.verb",
    }
    assert new_name(key, value, known_keys(BakeConfig), renamed) == sentence


def test_a_choice_that_changed_its_name_is_understood():
    assert new_choice("data", "messages", {}) == "data=messages is now called data=own; write data=own"
    assert new_choice("data", "something", {}) is None


def test_the_fields_of_trainings_that_have_a_meaning_exist():
    assert TRAINER.keys() <= {field.name for field in fields(TrainingArguments)}
