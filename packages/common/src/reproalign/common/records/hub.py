"""Pushing a finished run's model to the Hugging Face Hub, with its card and its record."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reproalign.common.errors import ReportedError, UserError, choose, first_line
from reproalign.common.manifests import CARD, MANIFEST
from reproalign.common.records.card import hub_base, made_folders, model_card
from reproalign.common.records.folder import read_record
from reproalign.common.records.handed_on import as_written
from reproalign.common.records.markdown import public_values
from reproalign.common.signing import signed

PUBLIC_RECORD = "record.json"  # the run's record without private paths, beside the pushed weights
_ADAPTER = "adapter_config.json"
_BASE = "base_model_name_or_path"
_WEIGHTS = (".safetensors", ".safetensors.index.json")


def check_push(repo: str, key: str = "hub.push") -> None:
    """Refuse what would make a push fail, before hours of training.

    Args:
        repo: ``ORG/NAME``.
        key: what errors name.

    Raises:
        UserError: for a name that the Hub does not take, a Hub that is switched off or cannot be reached, and a token
            that is missing, unknown or may only read.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # a lazy export

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"{key}={repo}: {first_line(error)}") from error
    if repo.count("/") != 1:
        raise UserError(f"{key}={repo} must be of the form ORG/NAME")
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{key}={repo}: HF_HUB_OFFLINE is set; unset it, or push later with `reproalign push`")
    if get_token() is None:
        raise UserError(f"{key}={repo} needs a token that may write; run `hf auth login`, or set HF_TOKEN")
    try:
        role = HfApi().whoami().get("auth", {}).get("accessToken", {}).get("role")
    except HfHubHTTPError as error:
        raise UserError(f"{key}={repo}: the Hub refuses the token ({first_line(error)})") from error
    except Exception as error:  # whatever the client's transport raises
        raise UserError(f"{key}={repo}: the Hub cannot be reached ({first_line(error)})") from error
    if role == "read":
        raise UserError(f"{key}={repo} needs a token that may write, and this one may only read")


def push(run: Path, repo: str, *, private: bool = False, folder: str | None = None, base: str | None = None) -> str:
    """Push the model of a finished run in one commit; a push that failed can be repeated.

    Weights that lie in the repository under other names are removed from it.

    Args:
        run: folder of the run.
        repo: ``ORG/NAME``, made if there is none.
        private: of a new repository.
        folder: which of several models; None: the only one.
        base: Hub name of an adapter's base; None: the one that the run began at.

    Returns:
        The address of the commit.

    Raises:
        UserError: for a run that is not finished, made no model or several, one that was altered, or an adapter
            of a base that is not on the Hub.
        ReportedError: if the Hub refuses it, or is gone.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    record = read_record(run)
    if record["status"] != "finished":
        raise UserError(f"{run}: the run is {record['status']}; finish it first (the same command resumes it)")
    made = _which(run, record, folder)
    as_written(run / made)
    contents: dict[str, bytes | Path] = {
        str(path.relative_to(run / made)): path
        for path in sorted((run / made).rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    if _ADAPTER in contents:
        contents[_ADAPTER] = _adapter_config(run / made / _ADAPTER, base or hub_base(record))
    contents[CARD] = model_card(run, record, made, repo).encode()
    contents[PUBLIC_RECORD] = (json.dumps(signed(public_values(record)), indent=2, ensure_ascii=False) + "\n").encode()
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        there = [name for name in api.list_repo_files(repo) if name.endswith(_WEIGHTS) and name not in contents]
        added = [CommitOperationAdd(name, content) for name, content in contents.items()]
        removed = [CommitOperationDelete(name) for name in there]
        message = f"{record['command'].split()[0]} {record['verb']}: {made} of the run begun {record['started']}"
        return str(api.create_commit(repo, [*added, *removed], commit_message=message).commit_url)
    except Exception as error:  # whatever the client and its transport raise: the run itself is finished
        given = {"--private": private, f"--folder={folder}": folder, f"--base={base}": base}
        again = shlex.join(["reproalign", "push", str(run), repo, *(flag for flag, is_set in given.items() if is_set)])
        raise ReportedError(
            f"the push to {repo} failed ({first_line(error)}); the run is kept; again: {again}"
        ) from error


def _which(run: Path, record: Mapping[str, Any], folder: str | None) -> str:
    made = [name for name in made_folders(record) if (run / name).is_dir()]
    if not made:
        raise UserError(f"{run}: the run has no model of its own to push")
    if folder is not None:
        return choose("model folder", folder, made)
    if len(made) > 1:
        raise UserError(f"{run} made several models ({', '.join(made)}); choose one with --folder")
    return made[0]


def _adapter_config(path: Path, base: str | None) -> bytes:
    """Return an adapter's settings with its base's name on the Hub in place of a folder that nobody else has."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    if Path(settings[_BASE]).expanduser().is_dir():
        if base is None:
            raise UserError(
                f"{path}: the adapter's base is the local folder {settings[_BASE]}; give its Hub name with --base, or "
                "train with model.lora.merge=true"
            )
        settings[_BASE] = base
    return (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode()
