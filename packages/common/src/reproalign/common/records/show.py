"""Records as a table: one by what is no default in it, several side by side by what they differ in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Column, Table
from rich.text import Text

from reproalign.common.errors import UserError
from reproalign.common.mappings import flatten
from reproalign.common.options.keys import keys
from reproalign.common.options.load import load_object
from reproalign.common.records.fingerprints import identity_of, shorten

FACTS = ("status", "error", "command", "recipe", "started", "wall_seconds", "processes", "strategy", "resumptions")


def record_table(records: Mapping[str, dict[str, Any]], *, everything: bool = False) -> Table:
    """Draw records, one column each.

    Args:
        records: name -> record.
        everything: of one record show the keys that have their default, too.
    """
    found = list(records.values())
    table = Table(
        Column("", overflow="fold"), *(Column(name, overflow="fold") for name in records), header_style="bold"
    )
    for key in FACTS:  # the command of one record stands above the table, whole
        if key == "command" and len(found) == 1:
            continue
        if any(record.get(key) is not None for record in found):
            table.add_row(key, *(text(record.get(key)) for record in found))
    table.add_row("source", *map(_source, found))
    table.add_row("hardware", *(_hardware(record.get("hardware") or {}) for record in found))
    table.add_row("peak memory", *(_memory(record.get("peak_memory") or {}) for record in found))
    _add_section(table, "metrics", [flatten(record.get("metrics", {})) for record in found])
    _add_section(table, "fingerprints", [_fingerprints(record) for record in found])
    configs = [flatten(record["config"]) for record in found]
    title = "configuration"
    if len(found) > 1:
        title += " (differences)"
        names = {name for config in configs for name in config}
        differing = {name for name in names if any(config.get(name) != configs[0].get(name) for config in configs)}
        configs = [{name: config.get(name) for name in sorted(differing)} for config in configs]
    elif not everything:
        defaults = _defaults(found[0].get("schema", ""))
        given = {key: value for key, value in configs[0].items() if defaults.get(key, ...) != value}
        title += f" ({len(configs[0]) - len(given)} keys with their defaults: --all)"
        configs = [given]
    _add_section(table, title, configs)
    return table


def text(value: Any) -> str:
    """Return a value as it is shown: six digits of a float, the words of YAML for null, true and false."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _add_section(table: Table, title: str, columns: Sequence[Mapping[str, Any]]) -> None:
    names = list(dict.fromkeys(name for column in columns for name in column))
    if names:
        table.add_section()
        table.add_row(Text(title, "bold"))
        for name in names:
            table.add_row(name, *(text(column[name]) if name in column else "" for column in columns))


def _defaults(schema: str) -> dict[str, Any]:
    """Return the defaults of a configuration class; none if this version has it no more."""
    try:
        found = load_object(schema)
    except (ImportError, AttributeError, ValueError, UserError):
        return {}
    return flatten({key: field.default for key, field in keys(found)})


def _fingerprints(record: Mapping[str, Any]) -> dict[str, str]:
    return {
        f"{kind}.{name}": shorten(identity_of(entry))
        for kind, entries in record.get("fingerprints", {}).items()
        for name, entry in entries.items()
    }


def _source(record: Mapping[str, Any]) -> str:
    package = str(record.get("package", "")).replace(".", "-")
    named = f"{package} {record.get('versions', {}).get(package, '')}".strip()
    git = record.get("git")
    if not git:
        return f"{named}, commit not known"
    return f"{named}, commit {git['commit'][:12]}{' and changes' if git.get('dirty') else ''}"


def _hardware(facts: Mapping[str, Any]) -> str:
    names = [entry["name"] for entry in facts.get("accelerators", [])]
    return ", ".join(names) if names else f"{facts.get('cpu', '')} ({facts.get('cores', '?')} cores)"


def _memory(peak: Mapping[str, int]) -> str:
    return ", ".join(f"{name.removesuffix('_bytes')} {value / 2**30:.2f} GiB" for name, value in peak.items())
