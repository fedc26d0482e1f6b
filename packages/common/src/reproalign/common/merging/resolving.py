"""Command line, plan file and defaults put together and checked: the settings of a merge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

from reproalign.common.errors import UserError, did_you_mean
from reproalign.common.mappings import flatten
from reproalign.common.merging.checks import check_number, check_setting, check_type
from reproalign.common.merging.config import MergeConfig
from reproalign.common.merging.settings import METHODS, MergeSettings, parse_size
from reproalign.common.merging.values import Cases, Setting
from reproalign.common.options.check import check_file

# Keys that say how a run is carried out and not what is merged; plan files do not hold them.
OF_THE_RUN = ("output_dir", "plan", "resume", "threads", "shard_size", "verify")
PART_KEYS = ("weights", "density", "t")
METHOD_KEYS = frozenset().union(*(method.keys for method in METHODS.values())) - {"seed"}


def resolve(config: MergeConfig) -> MergeSettings:
    """Put command line, plan file and defaults together, and check what plan files and the keys together say.

    Raises:
        UserError: for a key that is wrong, missing, or without meaning for the method.
    """
    given = _given(config)
    method = given.get("method", "linear")
    _check_applicable(method, given)
    models = tuple(given.get("models") or ())
    if not models:
        raise UserError("models is not set; give the models to merge, e.g. models=[a,b], or a plan file")
    if method == "slerp" and len(models) != 2:
        raise UserError(f"models: method=slerp interpolates between two models, not {len(models)}")
    if METHODS[method].base and method in ("task_arithmetic", "dare_linear") and given.get("scale") is None:
        raise UserError(
            f"scale is not set; method={method} needs the factor λ of its task vectors (there is no good default)"
        )
    settings = MergeSettings(
        method=method,
        models=models,
        base=given.get("base"),
        weights=_weights(method, models, given),
        densities=_densities(method, models, given),
        t=_position(method, given),
        normalize=given.get("normalize", method not in ("task_arithmetic", "dare_linear")),
        scale=check_number("scale", given.get("scale", 1.0)),
        trim_scope=given.get("trim_scope", "tensor"),
        statistics=_statistics(method, models, given),
        floor=check_number("floor", given.get("floor", 1e-10)),
        off_diagonal=check_number("off_diagonal", given.get("off_diagonal", 0.9)),
        output=given.get("output"),
        space=given.get("space"),
        rank=given.get("rank"),
        seed=config.seed,
        dtype=given.get("dtype", "auto"),
        accumulate=given.get("accumulate", "float32"),
        embeddings=given.get("embeddings", "refuse"),
        tied=given.get("tied", "keep"),
        allow=frozenset(given.get("allow", ())),
        files_from=given.get("files_from"),
        layers=given["layers"],
    )
    if settings.accumulate == "output" and method != "linear":
        raise UserError(f"accumulate=output rounds every step of method=linear and has no meaning for {method}")
    parse_size(config.shard_size)
    return settings


def _given(config: MergeConfig) -> dict[str, Any]:
    """Return what is set, from the plan and from the command line, the latter first."""
    from reproalign.common.merging.plan_file import read_plan

    plan, layers = read_plan(Path(config.plan).expanduser()) if config.plan else ({}, None)
    types = get_type_hints(MergeConfig)
    known = types.keys() - set(OF_THE_RUN)
    for key, value in plan.items():
        if key not in known:
            raise UserError(f"{config.plan}: unknown key '{key}'{did_you_mean(str(key), known)}")
        check_type(f"{config.plan}: {key}", value, types[key])
    check_file(MergeConfig, plan, str(config.plan))
    here = {key: getattr(config, key) for key in known if key != "seed"}
    set_here = {key: value for key, value in here.items() if value not in (None, {}, [])}
    if plan.get("seed", config.seed) != config.seed:
        raise UserError(f"{config.plan}: 'seed' is of the run; give it on the command line, seed={plan['seed']}")
    return {key: value for key, value in plan.items() if value is not None} | set_here | {"layers": layers}


def _check_applicable(method: str, given: dict[str, Any]) -> None:
    for key in sorted(METHOD_KEYS & given.keys() - METHODS[method].keys):
        readers = [name for name, entry in METHODS.items() if key in entry.keys]
        raise UserError(f"{key} has no meaning for method={method} (only for {', '.join(readers)}); remove it")
    if "space" in given and given.get("output") == "model":
        raise UserError("space says how adapters become an adapter; remove it, or set output=adapter")
    if method == "ensemble":
        silent = sorted({"output", "space", "rank", "dtype", "accumulate", "embeddings", "tied"} & given.keys())
        if silent and (silent != ["output"] or given["output"] != "model"):
            raise UserError(f"{silent[0]} has no meaning for method=ensemble, which writes no weights; remove it")
    if "rank" in given and given.get("space") != "delta":
        raise UserError("rank is for space=delta (recompression); set that, or remove rank")


def _parts(given: dict[str, Any], key: str) -> list[tuple[str, Any]]:
    """Return (selector, value) of what ``parts`` says about a key, the last first: later ones win."""
    found = []
    for path, value in flatten(given.get("parts") or {}).items():
        selector, _, last = path.rpartition(".")
        if last not in PART_KEYS or not selector:
            selector, last = path, "weights"
        if last == key:
            found.append((selector, value))
        if last not in METHODS[given.get("method", "linear")].keys:
            raise UserError(f"parts: '{path}': {last} has no meaning for method={given.get('method', 'linear')}")
    return found[::-1]


def _cases(parts: list[tuple[str, Any]], default: Setting) -> Setting:
    return Cases((*parts, ("*", default))) if parts else default


def _weights(method: str, models: Sequence[str], given: dict[str, Any]) -> tuple[Setting, ...]:
    count = len(models)
    default: Sequence[Any] = given.get("weights") or [1.0 / count if METHODS[method].average else 1.0] * count
    parts = _parts(given, "weights")
    for where, values in [("weights", default), *((f"parts: '{selector}'", value) for selector, value in parts)]:
        if not isinstance(values, list | tuple) or len(values) != count:
            raise UserError(f"{where}: {values} must be a list of {count} numbers, one for each model")
    return tuple(
        _cases(
            [(selector, check_setting(f"parts.{selector}", values[model], "weights")) for selector, values in parts],
            check_setting("weights", default[model], "weights"),
        )
        for model in range(count)
    )


def _densities(method: str, models: Sequence[str], given: dict[str, Any]) -> tuple[Setting, ...]:
    if "density" not in METHODS[method].keys:
        return ()
    default = given.get("density")
    default = (0.2 if method == "ties" else 0.1) if default is None else default
    values = default if isinstance(default, list | tuple) else [default] * len(models)
    parts = _part_settings(given, "density")
    return tuple(_cases(parts, check_setting("density", value, "density")) for value in values)


def _position(method: str, given: dict[str, Any]) -> Setting:
    if method != "slerp":
        return 0.0
    parts = _part_settings(given, "t")
    if given.get("t") is None:
        raise UserError("t is not set; method=slerp needs the position between the two models, 0 to 1")
    return _cases(parts, check_setting("t", given["t"], "t"))


def _part_settings(given: dict[str, Any], key: str) -> list[tuple[str, Setting]]:
    return [(name, check_setting(f"parts.{name}.{key}", value, key)) for name, value in _parts(given, key)]


def _statistics(method: str, models: Sequence[str], given: dict[str, Any]) -> tuple[str, ...]:
    found = tuple(given.get("statistics") or ())
    if "statistics" in METHODS[method].keys and len(found) != len(models):
        raise UserError(
            f"statistics: method={method} needs a file for each of the {len(models)} models, not {len(found)}"
        )
    return found
