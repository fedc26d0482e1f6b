"""Several runs of one verb: ``seeds=[1,2,3]`` and ``sweep.KEY=[A,B]``, or ``config=FILE`` of such runs once more."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from reproalign.common.errors import UserError, first_line
from reproalign.common.invocation import Invocation, Verb, read_back
from reproalign.common.launch.children import naming
from reproalign.common.options.check import check
from reproalign.common.options.compose import Composed, compose
from reproalign.common.options.file import KEY, given_file, is_sweep, read_file
from reproalign.common.options.keys import known_keys
from reproalign.common.options.load import load_object
from reproalign.common.options.renamed import Renamed
from reproalign.common.verbs.sweep import VERB, SweepConfig, check_values, combinations, recipe_of, swept_words

SEEDS, PREFIX, AT_ONCE = "seeds", "sweep.", "at_once"
NOT_SWEPT = ("output_dir", "resume", "seed", "hub.push", "hub.private")
SCHEMA = "reproalign.common.verbs.sweep:SweepConfig"


def sweep_invocation(command: str, package: str, verb: Verb, words: Sequence[str], renamed: Renamed) -> Invocation:
    """Return the run that starts those that ``words`` ask for, each of them composed and checked.

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
    file = given_file(rest)
    if file is not None and is_sweep(content := read_file(file)):
        config, contents = _recorded(command, verb, file, content, values)
        config = replace(config, words=[*config.words, *(word for word in rest if not word.startswith(f"{KEY}="))])
    else:
        lists = {key: check_values(key, value) for key, value in values.items() if key != AT_ONCE}
        swept = {key.removeprefix(PREFIX): found for key, found in lists.items() if key != SEEDS}
        facts = {name: getattr(verb, name) for name in VERB}
        config, contents = SweepConfig("", rest, facts, lists.get(SEEDS), swept), {}
    _check_keys(command, verb, config, rest, known)
    at_once = values.get(AT_ONCE, config.at_once)
    check(SweepConfig, {SEEDS: config.seeds, AT_ONCE: at_once})
    composed: dict[str, Composed] = {}
    for name, (setting, seed) in combinations(config).items():
        given = rest if contents else [*rest, *swept_words(setting, seed)]
        with naming(name) if composed else nullcontext():  # a mistake in what all have is not the first one's
            composed[name] = compose(
                package, verb.config_name, verb.schema, given, renamed=renamed, content=contents.get(name)
            )
    configs = {name: entry.config for name, entry in composed.items()}
    first = next(iter(configs.values()))
    if (first.get("hub") or {}).get("push"):
        raise UserError("hub.push: several runs make several models; push the one you want with `reproalign push`")
    config = replace(
        config,
        output_dir=first["output_dir"],
        words=[word for word in config.words if not word.startswith("output_dir=")],
        run={key: value for key, value in first.items() if key != "output_dir"},
        runs={
            name: {key: value for key, value in entry.items() if value != first.get(key)}
            for name, entry in configs.items()
        },
        at_once=at_once,
    )
    return Invocation(
        command=[command, *verb.name.split(), *words],
        package=package,
        verb=verb.name,
        schema=SCHEMA,
        target="reproalign.common.verbs.sweep:sweep",
        config=asdict(config),
        recipe=recipe_of(config.words),
    )


def _recorded(
    command: str, verb: Verb, file: Path, content: dict[str, Any], values: dict[str, Any]
) -> tuple[SweepConfig, dict[str, dict[str, Any]]]:
    """Return a sweep's configuration as a file has it, and what it says of each run."""
    given = next((key for key in values if key != AT_ONCE), None)
    if given is not None:
        raise UserError(
            f"{KEY}={file} is a sweep's, and says itself what is swept; leave {given} out, or give the file of one of "
            "its runs"
        )
    try:
        config: SweepConfig = read_back(SCHEMA, content)
        names, whole = list(combinations(config)), {"output_dir": config.output_dir, **content["run"]}
        contents = {name: {**whole, **sections} for name, sections in content["runs"].items()}
    except (UserError, TypeError, AttributeError) as error:
        reason = first_line(error)
        raise UserError(f"{KEY}={file}: not what a sweep wrote ({reason}); give it as it was written") from error
    if names != list(contents):
        raise UserError(
            f"{KEY}={file}: seeds and sweep say {', '.join(names)}, and runs has {', '.join(contents)}; give the "
            "file as it was written, or sweep from the file of one run"
        )
    made = (config.verb.get("name"), config.verb.get("schema"))
    if made != (verb.name, verb.schema):
        raise UserError(f"{KEY}={file} is a sweep of '{made[0]}' ({made[1]}), not of '{command} {verb.name}'")
    return config, contents


def _value(word: str) -> Any:
    key, _, text = word.partition("=")
    try:
        override = OverridesParser.create().parse_override(f"value={text}")
    except HydraException as error:
        raise UserError(f"{word}: cannot be read; write {key}=[A,B]") from error
    return None if override.is_sweep_override() else override.value()


def _check_keys(command: str, verb: Verb, config: SweepConfig, rest: Sequence[str], known: Sequence[str]) -> None:
    if config.seeds is not None and "seed" not in known:
        raise UserError(f"'{command} {verb.name}' draws nothing at random and has no seed; remove seeds")
    for key in config.sweep:
        if key in NOT_SWEPT:
            remedy = "write seeds=[1,2,3]" if key == "seed" else "remove it"
            raise UserError(f"sweep.{key}: that is not for a sweep; {remedy}")
    given = {word.partition("=")[0].lstrip("+") for word in rest}
    for key in [*config.sweep, *([] if config.seeds is None else ["seed"])]:
        if key in given:
            raise UserError(f"{key} is given once and swept; remove one of the two")
