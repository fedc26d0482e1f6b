"""All that is sealed in a folder, compared with what was written: runs, their models and checkpoints, and caches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from reproalign.common.errors import UserError
from reproalign.common.integrity import FileFinding, damage, examine
from reproalign.common.manifests import MANIFEST, RECORD, digest_of, is_sealed, seal
from reproalign.common.records.fingerprints import fingerprint_folder
from reproalign.common.records.folder import read_record


def sealed_in(path: Path) -> list[Path]:
    """Return what can be checked at ``path`` or below it: folders and files with a manifest, and runs.

    Of a path inside a sealed folder it is that folder.

    Raises:
        UserError: if there is nothing.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; check the path")
    if path.is_dir():
        places = {file.parent for file in path.rglob(MANIFEST)}
        places |= {file.with_name(file.name.removesuffix(f".{MANIFEST}")) for file in path.rglob(f"?*.{MANIFEST}")}
        found = {file.parent for file in path.rglob(RECORD)} | {place for place in places if is_sealed(place)}
        if found:
            return sorted(found)
    for folder in path.absolute().parents:
        if is_sealed(folder) or (folder / RECORD).is_file():
            return [folder]
    raise UserError(f"{path}: nothing was sealed there ({MANIFEST} or {RECORD} is needed); give a run or a cache")


def check_sealed(path: Path) -> Iterator[FileFinding]:
    """Compare a sealed folder or file, or a run, with what was written there; what lies below it in folders of its own
    is left out.
    """
    if (path / RECORD).is_file():
        yield from check_run(path)
    if is_sealed(path):
        yield from examine(path, nested=False)


def check_run(folder: Path) -> Iterator[FileFinding]:
    """Compare a run's record with its own SHA-256, and the weights that the run made with those that it names."""
    file = folder / RECORD
    try:
        record = read_record(folder)
    except UserError as error:
        yield FileFinding(file, file.stat().st_size, str(error))
        return
    yield FileFinding(file, file.stat().st_size)
    if record["status"] == "finished" and record.get("format", 1) != 1 and not is_sealed(folder):
        yield FileFinding(folder / MANIFEST, 0, f"{folder / MANIFEST} is missing")
    for name, entry in record.get("fingerprints", {}).get("weights", {}).items():
        if entry.get("folder"):
            yield _weights(name, folder / entry["folder"], entry)


def accept(path: Path) -> None:
    """Seal a folder or a file as it is now."""
    if is_sealed(path):
        seal(path)


def file_problems(folder: Path) -> list[str]:
    """Return what is missing or altered of what a run made, in words; its checkpoints aside."""
    found = [*check_run(folder), *(examine(folder) if is_sealed(folder) else ())]
    return list(dict.fromkeys(finding.problem for finding in found if finding.problem))


def _weights(name: str, folder: Path, entry: Mapping[str, Any]) -> FileFinding:
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if not folder.is_dir():
        return FileFinding(folder, size, f"{folder} is missing (weights '{name}' of the record)")
    problem = damage(folder) if is_sealed(folder) else None
    if problem:
        return FileFinding(folder, size, problem)
    try:
        files = entry.get("files")
        same = (
            all(digest_of(folder / file) == digest for file, digest in files.items())
            if files
            else fingerprint_folder(folder) == entry.get("sha256")
        )
    except FileNotFoundError as error:
        if (folder / "ensemble.json").is_file():  # which has no weights of its own
            return FileFinding(folder, size)
        return FileFinding(folder, size, f"{error} (weights '{name}' of the record)")
    altered = f"{folder}: its weights are not those that the record names as '{name}'"
    return FileFinding(folder, size, None if same else altered)
