"""Keys of the core that changed their names: each is understood under its old name, by an error that gives the new."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# Old key or section -> new, or several of which the verb has one. NAME in a new key is for the user to choose. What
# holds a blank is a sentence on where the key went. ``data=old`` -> the new choice of that group.
Renamed = Mapping[str, str | Sequence[str]]
RENAMED: Renamed = {
    **{
        f"data.{name}": f"data.sets.NAME.{name}"
        for name in ("source", "name", "config_name", "revision", "path", "eval_path", "eval_split", "fraction")
    },
    "data.train_split": "data.sets.NAME.split",
    **{
        f"data.{old}": f"data.sets.NAME.{new} says it for each data set, e.g. data.sets.helpful.{new}={value}"
        for old, new, value in (
            ("paths", "path", "FILE"),
            ("eval_paths", "eval_path", "FILE"),
            ("sources", "source", "hh_helpful"),
            ("first", "first", "1000"),
            ("eval_first", "eval_first", "1000"),
            ("revisions", "revision", "main"),
        )
    },
    "datasets": "name each data set under data.sets, e.g. data.sets.hh.source=hh data.sets.shp.source=shp",
    "data.mix": "name each data set under data.sets, e.g. data.sets.a.name=ORG/A data.sets.a.fraction=0.5",
    **{
        f"data.{name}": f"text.{name}"
        for name in (
            *("max_length", "max_prompt_length", "truncation", "overlong", "special_tokens", "boundary"),
            *("system_message", "layout", "truncation_side", "padding_side", "response_separator"),
        )
    },
    "seed": "nothing is drawn at random here; leave it out",
    **{
        f"{model}.{name}": "nothing is trained here, and a trained adapter is loaded by its folder; leave it out"
        for model in ("model", "policy", "reward")
        for name in ("lora", "dropout")
    },
    **{
        f"reference.{name}": "a reference is loaded as it is here, if there is one; leave it out"
        for name in ("mode", "batch_size")
    },
    "trainer": "nothing is trained here; leave it out",
    "logprobs": "nothing reads it here; leave it out",
    "data=preference": "own",
    "data=messages": "own",
    "data=imdb_characters": "imdb",
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
    news = " or ".join(f"{candidate}{key.removeprefix(old)}" for candidate in candidates)
    return f"{key} is now called {news}, which nothing that is chosen here has; choose what has it, or leave {key} out"


def new_choice(group: str, name: str, renamed: Renamed) -> str | None:
    """Return the sentence on a choice of a group that changed its name, or None for one that never was."""
    new = {**RENAMED, **renamed}.get(f"{group}={name}")
    return f"{group}={name} is now called {group}={new}; write {group}={new}" if new else None
