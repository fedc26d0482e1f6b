"""The words of a sweep: ``seeds=[1,2,3]`` and ``sweep.KEY=[A,B]`` of any verb that has the keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from reproalign.common.errors import UserError
from reproalign.common.invocation import Invocation, Verb
from reproalign.common.options.check import check
from reproalign.common.options.compose import compose
from reproalign.common.options.keys import known_keys
from reproalign.common.options.load import load_object
from reproalign.common.options.renamed import Renamed
from reproalign.common.options.words import as_word
from reproalign.common.verbs.sweep import VERB, SweepConfig, check_values

SEEDS, PREFIX, AT_ONCE = "seeds", "sweep.", "at_once"
NOT_SWEPT = ("output_dir", "resume", "seed", "hub.push", "hub.private")


def sweep_invocation(command: str, package: str, verb: Verb, words: Sequence[str], renamed: Renamed) -> Invocation:
    """Return the run that starts those that ``words`` ask for.

    Raises:
        UserError: for a verb without the keys, values that are no list, or words that do not go together.
    """
    known = known_keys(load_object(verb.schema))
    if "output_dir" not in known:
        raise UserError(f"'{command} {verb.name}' writes no folder; seeds and sweep.* are for verbs that do")
    own_keys = (f"{SEEDS}=", PREFIX, *([] if AT_ONCE in known else [f"{AT_ONCE}="]))
    own = {word: _value(word) for word in words if word.startswith(own_keys)}
    rest = [word for word in words if word not in own]
    values = {word.partition("=")[0]: value for word, value in own.items()}
    lists = {key: check_values(key, value) for key, value in values.items() if key != AT_ONCE}
    swept = {key.removeprefix(PREFIX): found for key, found in lists.items() if key != SEEDS}
    _check_keys(command, verb, values, swept, rest, known)
    first = [*rest, *(as_word(key, found[0]) for key, found in swept.items())]
    seeds = lists.get(SEEDS)
    first += [] if seeds is None else [as_word("seed", seeds[0])]
    composed = compose(package, verb.config_name, verb.schema, first, renamed=renamed)
    if (composed.config.get("hub") or {}).get("push"):
        raise UserError("hub.push: several runs make several models; push the one you want with `reproalign push`")
    given = {
        "output_dir": composed.config["output_dir"],
        "words": [word for word in rest if not word.startswith("output_dir=")],
        "verb": {name: getattr(verb, name) for name in VERB},
        "seeds": seeds,
        "sweep": swept,
        AT_ONCE: values.get(AT_ONCE),
    }
    check(SweepConfig, given)
    return Invocation(
        command=[command, *verb.name.split(), *words],
        package=package,
        verb=verb.name,
        schema="reproalign.common.verbs.sweep:SweepConfig",
        target="reproalign.common.verbs.sweep:sweep",
        config=asdict(SweepConfig(**given)),
        recipe=composed.recipe,
    )


def _value(word: str) -> Any:
    key, _, text = word.partition("=")
    try:
        override = OverridesParser.create().parse_override(f"value={text}")
    except HydraException as error:
        raise UserError(f"{word}: cannot be read; write {key}=[A,B]") from error
    return None if override.is_sweep_override() else override.value()


def _check_keys(
    command: str, verb: Verb, values: dict[str, Any], swept: dict[str, Any], rest: Sequence[str], known: Sequence[str]
) -> None:
    if SEEDS in values and "seed" not in known:
        raise UserError(f"'{command} {verb.name}' draws nothing at random and has no seed; remove seeds")
    for key in swept:
        if key in NOT_SWEPT:
            remedy = "write seeds=[1,2,3]" if key == "seed" else "remove it"
            raise UserError(f"sweep.{key}: that is not for a sweep; {remedy}")
    given = {word.partition("=")[0].lstrip("+") for word in rest}
    for key in [*swept, *(["seed"] if SEEDS in values else [])]:
        if key in given:
            raise UserError(f"{key} is given once and swept; remove one of the two")
