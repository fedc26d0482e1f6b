"""Keys of the core that changed their names: each is understood under its old name, by an error that gives the new."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# Old key or section -> new, or several of which the verb has one. NAME in a new key is for the user to choose. What
# holds a blank is a sentence on where the key went. ``data=old`` stands for a choice of a group.
Renamed = Mapping[str, str | Sequence[str]]
RENAMED: Renamed = {
    "suite.title": "nothing read it; write it as a comment into the suite's file",
    "suite.source": "nothing read it; write it as a comment into the suite's file",
}


def new_name(key: str, value: str, known: Sequence[str], renamed: Renamed) -> str | None:
    """Return the sentence on a key that changed its name, or None for one that never was.

    Args:
        key: as given, unknown to the verb.
        value: as given, "" for none.
        known: keys of the verb; a mapping's name stands for all keys below it.
        renamed: of the paper's command; the core's :data:`RENAMED` are added.
    """
    table = {**RENAMED, **renamed}
    old = max((name for name in table if key == name or key.startswith(f"{name}.")), key=len, default=None)
    if old is None:
        return None
    found = table[old]
    candidates = (found,) if isinstance(found, str) else found
    for candidate in candidates:
        if " " in candidate:
            return f"{key} is gone: {candidate}"
        new = f"{candidate}{key.removeprefix(old)}"
        if any(new == name or new.startswith(f"{name}.") or name.startswith(f"{new}.") for name in known):
            return f"{key} is now called {new}; write {new}={value or 'VALUE'}"
    return None
