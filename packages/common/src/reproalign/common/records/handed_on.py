"""What one run makes and another reads: checked against what was written before it is used."""

from __future__ import annotations

from pathlib import Path

from reproalign.common.errors import UserError
from reproalign.common.integrity import damage_of
from reproalign.common.records.lineage import read_plain, run_folder

UNUSABLE = ("failed", "interrupted")


def intact(path: Path) -> Path:
    """Return ``path`` if it is what the run that it is of wrote, or of no run.

    Raises:
        UserError: for a file or folder that was altered, cut off or lost in part since, or whose run did not finish.
    """
    as_written(path)
    folder = run_folder(str(path))
    record = folder and read_plain(folder)
    if record and record.get("status") in UNUSABLE:
        raise UserError(
            f"{path}: the run that made it is {record['status']} ({folder}); give its command again, which goes on to "
            "its end, or copy the file out of its folder to use it as it is"
        )
    return path


def as_written(path: Path) -> Path:
    """Return ``path`` if it is what was written, whatever became of its run afterwards.

    Raises:
        UserError: for a file or folder that was altered, cut off or lost in part since.
    """
    problem = damage_of(path)
    if problem:
        raise UserError(f"{problem}; {remedy(path)}")
    return path


def check_model(folder: Path, key: str, *, largest: int | None) -> None:
    """Refuse a model's folder that is not what was written; one that nothing sealed is taken as it is.

    Args:
        folder: of the model.
        key: what the user named it for.
        largest: bytes above which a file is checked by its size alone.

    Raises:
        UserError: naming the file that was altered, cut off or lost.
    """
    problem = damage_of(folder, largest=largest)
    if problem:
        raise UserError(f"{key}={folder}: {problem}; {remedy(folder)}")


def remedy(path: Path) -> str:
    """Return what can be done about something that was altered."""
    folder = path if path.is_dir() else path.parent
    return f"put it back from a copy, or make it again; to use it as it is: reproalign check {folder} --accept"
