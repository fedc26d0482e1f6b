"""What makes weights, and what is computed with them, the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, try_to_load_from_cache

from reproalign.common.config.model import LoadedModelConfig
from reproalign.common.files import sha256_json
from reproalign.common.models.adapters import adapter_folder
from reproalign.common.models.ensemble_file import is_ensemble, read_ensemble
from reproalign.common.models.load import model_path
from reproalign.common.records import Run, fingerprint_folder

_WRITER = ("_name_or_path", "transformers_version")


def identify_computation(config: LoadedModelConfig, name: str, revision: str | None) -> str:
    """Return what identifies the log-probs of weights: the weights, and how they are held."""
    held = [config.dtype, config.attn_implementation, config.quantization, config.trust_remote_code]
    return sha256_json([identify_weights(name, revision), held])


def identify_weights(name: str, revision: str | None, known: Mapping[str, str] | None = None) -> str:
    """Return what identifies weights: the fingerprint of a folder, or a Hub id with the commit of its revision.

    Of a folder with an adapter alone, its settings (rank, scale) and its base are part of it; of an ensemble its
    members and weights.

    Args:
        name: a folder or a Hub id.
        revision: of a Hub id.
        known: SHA-256 of files of the folder by their names, which are not read again.
    """
    path = Path(model_path(name))
    if is_ensemble(path):
        spec = read_ensemble(path)
        base = spec.base and identify_weights(spec.base, None)
        return sha256_json(["ensemble", [identify_weights(one, None) for one in spec.members], spec.weights, base])
    if adapter_folder(str(path)):
        return _identify_adapter(path, revision, known)
    return fingerprint_folder(path, known) if path.is_dir() else f"{name}@{hub_commit(name, revision)}"


def used_weights(run: Run, role: str, name: str, revision: str | None, **facts: Any) -> None:
    """Record the weights that a model begins at: the fingerprint of a folder, or the commit of a Hub repository.

    Only the main process reads them.

    Args:
        run: the open record.
        role: what they are for: ``policy``, ``reference``, ``start``.
        name: a folder or a Hub id.
        revision: of a Hub id.
        facts: what else is to be known of them.

    Raises:
        UserError: if a resumed run began with other weights.
    """
    if run.is_main:
        identity = identify_weights(name, revision)
        run.add_fingerprint("weights", role, identity, name=name, revision=revision, **facts)


def model_label(name: str) -> str:
    """Return what tables and answer files call a model: the end of its name; of a run's ``model``, the run's."""
    path = Path(name)
    return path.parent.name if path.name == "model" and path.parent.name else path.name or name


def identify_settings(name: str) -> str | None:
    """Return what identifies the settings that weights in a folder are run with, such as RoPE's scaling.

    That is ``config.json`` and ``generation_config.json``, but for what only says who wrote them; None where neither is
    in the folder. Weights on the Hub are identified with theirs, by the commit.
    """
    folder = Path(model_path(name))
    if is_ensemble(folder):
        return sha256_json([identify_settings(member) for member in read_ensemble(folder).members])
    base = adapter_folder(str(folder))
    if base:
        return identify_settings(str(_adapter_settings(base).get("base_model_name_or_path")))
    found = {}
    for file in (folder / "config.json", folder / "generation_config.json"):
        if file.is_file():
            values = json.loads(file.read_text(encoding="utf-8"))
            found[file.name] = {key: value for key, value in values.items() if key not in _WRITER}
    return sha256_json(found) if found else None


def hub_commit(name: str, revision: str | None) -> str:
    """Return the commit that a revision (None: ``main``) of a Hub model stands for.

    Asked of the Hub, or offline read off the cached download; the revision as it was given if neither knows it.
    """
    try:
        return str(HfApi().model_info(name, revision=revision, timeout=10).sha)
    except Exception:  # no network, no such model: whoever loads the model says so
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
        return Path(cached).parent.name if isinstance(cached, str) else revision or "main"


def _identify_adapter(folder: Path, revision: str | None, known: Mapping[str, str] | None) -> str:
    settings = _adapter_settings(folder)
    base = str(settings.pop("base_model_name_or_path", None))
    model_path(base, f"base_model_name_or_path of the adapter in {folder}")  # an error names what is gone
    # PEFT writes some of its sets in another order every time.
    ordered = {name: sorted(value, key=str) if isinstance(value, list) else value for name, value in settings.items()}
    return sha256_json([fingerprint_folder(folder, known), ordered, identify_weights(base, revision)])


def _adapter_settings(folder: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return settings
