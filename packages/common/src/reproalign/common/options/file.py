"""``config=FILE``: a configuration as YAML, such as ``--cfg`` prints and a run leaves in its folder, given back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from reproalign.common.errors import UserError, did_you_mean, first_line
from reproalign.common.options.choices import chosen_sections
from reproalign.common.options.keys import NAME, fields, is_section, known_keys, locate
from reproalign.common.options.renamed import Renamed, new_name

KEY = "config"
SWEEP = ("verb", "run", "runs")  # keys of a sweep's configuration alone (reproalign.common.verbs.sweep)


def given_file(words: Sequence[str]) -> Path | None:
    """Return the file that ``config=FILE`` among ``words`` names; of a run's folder, its ``config.yaml``.

    Raises:
        UserError: for more than one.
    """
    found = [Path(word.partition("=")[2]) for word in words if word.startswith(f"{KEY}=")]
    if len(found) > 1:
        raise UserError(f"{KEY}= is given {len(found)} times; give one file")
    return None if not found else found[0] / "config.yaml" if found[0].is_dir() else found[0]


def given_content(words: Sequence[str]) -> dict[str, Any]:
    """Return what the file holds that ``config=FILE`` among ``words`` names; nothing if there is none.

    Raises:
        UserError: see :func:`given_file` and :func:`read_file`.
    """
    file = given_file(words)
    return {} if file is None else read_file(file)


def read_file(path: Path) -> dict[str, Any]:
    """Read a configuration file; ``${`` in it is text, since what ``--cfg`` prints refers to nothing.

    Raises:
        UserError: if it cannot be read or is no mapping.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:  # no UTF-8, or no path
        raise UserError(f"{KEY}={path}: cannot be read as YAML ({first_line(error)}); check the path") from error
    if not isinstance(content, dict):
        raise UserError(f"{KEY}={path}: holds no mapping from keys to values")
    plain: dict[str, Any] = _escaped(content)
    return plain


def is_sweep(content: Mapping[str, Any]) -> bool:
    """Say whether a file is the configuration of several runs."""
    return all(isinstance(content.get(key), Mapping) for key in SWEEP)


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _escaped(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_escaped(entry) for entry in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value


def check_keys(schema: type, path: Path | None, content: Mapping[str, Any], renamed: Renamed) -> None:
    """Check that the class has every key of a file.

    Raises:
        UserError: naming the key, and its new name if it changed.
    """
    for key in _keys(schema, content):
        if locate(schema, key) is None:
            known = known_keys(schema)
            sentence = new_name(key, "", known, renamed) or f"unknown key '{key}'{did_you_mean(key, known)}"
            raise UserError(f"{KEY}={path}: {sentence}")


def is_whole(schema: type, content: Mapping[str, Any]) -> bool:
    """Say whether a file has every key of the class."""
    return {key for key in known_keys(schema) if f".{NAME}." not in key} <= set(_keys(schema, content))


def put_file(
    composed: dict[str, Any],
    schema: type,
    path: Path,
    content: Mapping[str, Any],
    groups: Sequence[str],
    renamed: Renamed,
) -> dict[str, Any]:
    """Put a file's values over what was composed. One that has every key stands by itself.

    Args:
        composed: of the verb's configurations, as plain values.
        schema: the configuration class, with free keys in sections that are chosen by their names.
        path: the file.
        content: of the file.
        groups: whose configurations were chosen by words, which go over the file.
        renamed: see :func:`~reproalign.common.options.renamed.new_name`.

    Raises:
        UserError: for an unknown key, or a recipe beside a file that has every key.
    """
    check_keys(schema, path, content, renamed)
    whole = is_whole(schema, content)
    if whole and "experiment" in groups:
        raise UserError(f"{KEY}={path} has every key, so that a recipe beside it says nothing; leave one of them out")
    over = {name: composed[name] for name in groups if name in composed}
    # The keys of another loss than the file's are none of its own.
    renewed = {
        name
        for name in chosen_sections(schema)
        if isinstance(section := content.get(name), Mapping) and "name" in section
    }
    base = {} if whole else {name: values for name, values in composed.items() if name not in renewed}
    merged = OmegaConf.to_container(OmegaConf.merge(base, content))
    assert isinstance(merged, dict)
    return {str(name): values for name, values in merged.items()} | over


def _keys(schema: type, content: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the keys of a file, those of sections with dots; what is below a mapping is the user's to name."""
    sections = {field.name: field for field in fields(schema)}
    for name, value in content.items():
        field = sections.get(name)
        if field is not None and is_section(field.kind) and isinstance(value, Mapping):
            yield from _keys(field.kind, value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
