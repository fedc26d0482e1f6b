"""The models that a user names as pre, post or checkpoints: that they are there, and what their weights are."""

from __future__ import annotations

from collections.abc import Mapping

from reproalign.common.files import sha256_json
from reproalign.common.merging.inputs import local_folder, split_composed
from reproalign.common.models.identify import identify_weights


def check_there(names: Mapping[str, str], *, allow_bin: bool = False) -> None:
    """Refuse models that are not there, by the key that names them; those on the Hub are downloaded.

    Args:
        names: by key: a folder, a Hub id, an adapter, or MODEL+ADAPTER.
        allow_bin: models without safetensors are downloaded too.

    Raises:
        UserError: naming the key.
    """
    for key, name in names.items():
        for part in split_composed(name) or (name,):
            local_folder(part, key, allow_bin=allow_bin)


def identity(name: str, digests: Mapping[str, Mapping[str, str]] | None = None) -> str:
    """Return what identifies the weights of a model, an adapter, or MODEL+ADAPTER.

    Args:
        name: as :func:`check_there` takes it.
        digests: by model, the SHA-256 of its files by their names, which are not read again.
    """
    parts = split_composed(name) or (name,)
    found = [identify_weights(part, None, (digests or {}).get(part)) for part in parts]
    return found[0] if len(found) == 1 else sha256_json(found)
