"""lm-eval's tasks by name: where a task is defined, what a group consists of.

``TaskManager()`` parses all of lm-eval's some 14,000 files, which takes a quarter of a minute. Here their names are
read with one regular expression, and only the folder that defines what is asked for is parsed.
"""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from reproalign.common.errors import UserError, did_you_mean

_NAME = re.compile(r"""^["']?(?:task|group)["']?[ ]*:[ ]*["']?([^\s"'#\[]+)""", re.MULTILINE)


def lm_eval_version() -> str:
    """Return the version of lm-eval.

    Raises:
        UserError: if it is not installed.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("suites need lm-eval: pip install 'reproalign-common[eval]'")
    return version("lm_eval")


@cache
def defined_in() -> dict[str, Path]:
    """Map the name of every task and group that lm-eval ships to the file that defines it."""
    lm_eval_version()
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None
    assert spec.origin is not None
    places: dict[str, Path] = {}
    for path in sorted((Path(spec.origin).parent / "tasks").glob("**/*.yaml"), key=lambda path: path.as_posix()):
        for name in _NAME.findall(path.read_text(encoding="utf-8")):
            places.setdefault(name, path)
    return places


@cache
def task_manager(folder: Path | None) -> Any:
    """Return lm-eval's ``TaskManager`` of one folder of its tasks; None: of all of them."""
    from lm_eval.tasks import TaskManager

    return TaskManager() if folder is None else TaskManager(include_path=str(folder), include_defaults=False)


def manager_of(name: str) -> Any:
    """Return a ``TaskManager`` that knows the task or group ``name`` and, if it is a group, its members.

    Raises:
        UserError: if lm-eval has nothing of that name.
    """
    if name not in defined_in():
        raise UserError(
            f"suite.tasks: lm-eval {lm_eval_version()} has no task '{name}'{did_you_mean(name, defined_in())}; "
            "`lm-eval ls tasks` lists them"
        )
    manager = task_manager(defined_in()[name].parent)
    return manager if _is_whole(name, manager) else task_manager(None)


def is_group(name: str, manager: Any) -> bool:
    """Say whether ``name`` stands for several tasks."""
    return manager.task_index[name].kind.name in ("GROUP", "TAG")


def subtasks(name: str, manager: Any) -> list[str]:
    """List the tasks that a group consists of, those of its own groups included.

    Raises:
        UserError: for a group that changes its tasks' configuration, which is another experiment by the same name.
    """
    entry = manager.task_index[name]
    if entry.kind.name == "TAG":
        return sorted(entry.tags)
    if entry.kind.name != "GROUP":
        return [name]
    found: list[str] = []
    for member in entry.cfg["task"]:
        if not isinstance(member, str):
            raise UserError(f"suite.tasks: the group '{name}' changes the configuration of its tasks; name the tasks")
        found += [task for task in subtasks(member, manager) if task not in found]
    return found


def is_weighted(name: str, manager: Any) -> bool | None:
    """Say whether lm-eval weights a group's tasks by their questions; None if it gives the group no number."""
    rules = (manager.task_index[name].cfg or {}).get("aggregate_metric_list")
    if not rules:
        return None
    rules = rules if isinstance(rules, list) else [rules]
    return bool(rules[0].get("weight_by_size", True))


def _is_whole(name: str, manager: Any) -> bool:
    """Say whether all members of ``name`` are in the index of ``manager``."""
    entry = manager.task_index.get(name)
    if entry is None:
        return False
    if entry.kind.name != "GROUP":
        return True
    return all(not isinstance(member, str) or _is_whole(member, manager) for member in entry.cfg["task"])
