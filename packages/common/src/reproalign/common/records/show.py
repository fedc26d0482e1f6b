"""Records as a table: one by what is no default in it, several side by side by what they differ in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Column, Table
from rich.text import Text

from reproalign.common.errors import UserError
from reproalign.common.mappings import flatten
from reproalign.common.options.keys import locate
from reproalign.common.options.load import load_object
from reproalign.common.records.fingerprints import identity_of, shorten

STARTING = tuple(f"verb.{name}" for name in ("config_name", "schema", "target", "check"))  # a sweep's runs
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
        configs = [{name: config[name] for name in sorted(differing) if name in config} for config in configs]
    elif not everything:
        schema = _schema(found[0].get("schema", ""))
        known = {key for key, value in configs[0].items() if key in STARTING or _is_default(schema, key, value)}
        given = {key: value for key, value in configs[0].items() if key not in known}
        title += f" ({len(configs[0]) - len(given)} keys with their defaults: --all)"
        configs = [given]
    _add_section(table, title, configs)
    return table


def text(value: Any) -> str:
    """Return a value as it is shown: six digits of a float, lists and the words for null, true and false as in YAML."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(text, value))}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def texts(left: Any, right: Any) -> tuple[str, str]:
    """Return two values that differ as they are shown, with all their digits where six are the same."""
    shown = text(left), text(right)
    return shown if shown[0] != shown[1] else (repr(left), repr(right))


def _add_section(table: Table, title: str, columns: Sequence[Mapping[str, Any]]) -> None:
    names = list(dict.fromkeys(name for column in columns for name in column))
    if names:
        table.add_section()
        table.add_row(Text(title, "bold"))
        for name in names:
            table.add_row(name, *(text(column[name]) if name in column else "" for column in columns))


def _schema(name: str) -> type | None:
    """Return a configuration class; None if this version has it no more."""
    try:
        found: type = load_object(name)
    except (ImportError, AttributeError, ValueError, UserError):
        return None
    return found


def _is_default(schema: type | None, key: str, value: Any) -> bool:
    """Say whether a key has the default of its class; what a user named in a mapping has none."""
    found = locate(schema, key) if schema else None
    return found is not None and found[0].kind is not dict and found[0].default == value


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
