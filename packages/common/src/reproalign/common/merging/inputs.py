"""From what a user names (folders, Hub ids, adapters, MODEL+ADAPTER) to opened models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from reproalign.common.errors import UserError
from reproalign.common.merging.adapted import AdaptedCheckpoint
from reproalign.common.merging.adapters import Adapter
from reproalign.common.merging.checkpoint import Checkpoint
from reproalign.common.merging.settings import METHODS, MergeSettings
from reproalign.common.merging.statistics import open_statistics
from reproalign.common.models.adapters import adapter_folder
from reproalign.common.models.ensemble_file import is_ensemble
from reproalign.common.models.load import model_path

PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
Model = Checkpoint | AdaptedCheckpoint
# Methods whose result is a sum of low-rank matrices again.
AS_ADAPTER = ("linear", "task_arithmetic")


@dataclass
class Inputs:
    """What is merged.

    Attributes:
        models: in the order of the weights; empty if adapters are merged as adapters.
        base: θ_0, or None.
        adapters: to be merged as adapters; empty if models are merged.
        statistics: of Fisher and RegMean, one for each model.
        files: the weight files that are read, by what their model is called.
        template: whose config, tokenizer and generation files are copied.
    """

    models: list[Model] = field(default_factory=list)
    base: Model | None = None
    adapters: list[Adapter] = field(default_factory=list)
    statistics: list[Checkpoint] = field(default_factory=list)
    files: dict[str, list[Path]] = field(default_factory=dict)
    template: Path | None = None

    @property
    def all_models(self) -> list[Model]:
        """The base, if any, and the models: the order of operands."""
        return [*([self.base] if self.base is not None else []), *self.models]


@contextmanager
def open_inputs(settings: MergeSettings) -> Iterator[Inputs]:
    """Open everything that a merge reads; the files are closed at the end of the block.

    Raises:
        UserError: for what does not exist, cannot be read, or is not of a kind with the others.
    """
    with ExitStack() as stack:
        opener = _Opener(settings, stack)
        yield opener.open()


class _Opener:
    def __init__(self, settings: MergeSettings, stack: ExitStack) -> None:
        self.settings = settings
        self.stack = stack
        self.inputs = Inputs()
        self.opened: dict[Path, Checkpoint] = {}
        self.dtype: torch.dtype = getattr(torch, settings.wide)

    def open(self) -> Inputs:
        """Open the models, the base and the statistics."""
        settings, inputs = self.settings, self.inputs
        if settings.method == "ensemble":
            return inputs  # its models are read when it is loaded
        folders = [self._folder("models", name) for name in settings.models if not split_composed(name)]
        only_adapters = len(folders) == len(settings.models) and all(map(_is_adapter, folders))
        as_adapter = settings.output == "adapter" or (
            settings.output is None and only_adapters and settings.method == "linear"
        )
        if as_adapter:
            if not only_adapters or settings.method not in AS_ADAPTER:
                raise UserError(
                    f"output=adapter merges adapters by method={' or '.join(AS_ADAPTER)}; for other models or methods "
                    "set output=model"
                )
            if settings.method != "linear" and settings.space == "factor":
                raise UserError(f"space=factor averages A and B; for method={settings.method} set space=delta")
            if settings.accumulate == "output":
                raise UserError("accumulate=output has no meaning where adapters become an adapter; set output=model")
            for key, default in {"dtype": "auto", "embeddings": "refuse", "tied": "keep", "files_from": None}.items():
                if getattr(settings, key) != default:
                    raise UserError(
                        f"{key} has no meaning where adapters become an adapter; remove it or set output=model"
                    )
            inputs.adapters = [self._adapter(name) for name in settings.models]
            return inputs
        if settings.space is not None:
            raise UserError("space says how adapters become an adapter; remove it, or set output=adapter")
        if settings.base is not None:
            inputs.base = self._model("base", settings.base)
        inputs.models = [self._model("models", name) for name in settings.models]
        if METHODS[settings.method].base and inputs.base is None:
            bases = {model.base.folder: model.base for model in inputs.models if isinstance(model, AdaptedCheckpoint)}
            if len(bases) != 1 or not all(isinstance(model, AdaptedCheckpoint) for model in inputs.models):
                raise UserError(
                    f"base is not set; method={settings.method} needs the model that task vectors start from"
                )
            inputs.base = next(iter(bases.values()))
        if not METHODS[settings.method].base and inputs.base is not None:
            if not any(isinstance(model, AdaptedCheckpoint) for model in inputs.models):
                raise UserError(f"base has no meaning for method={settings.method}; remove it")
            inputs.base = None
        inputs.statistics = [self._statistics(name) for name in settings.statistics]
        inputs.template = self._template()
        return inputs

    def _model(self, key: str, name: str) -> Model:
        parts = split_composed(name)
        if parts:
            return AdaptedCheckpoint(self._checkpoint(key, parts[0]), self._adapter(parts[1]), self.dtype)
        if _is_adapter(self._folder(key, name)):
            adapter = self._adapter(name)
            base = self.settings.base if key == "models" and self.settings.base else adapter.base
            return AdaptedCheckpoint(self._checkpoint("base", base), adapter, self.dtype)
        return self._checkpoint(key, name)

    def _checkpoint(self, key: str, name: str) -> Checkpoint:
        folder = self._folder(key, name)
        if folder not in self.opened:
            made = Checkpoint(name, folder, allow_bin="bin" in self.settings.allow)
            self.stack.callback(made.close)
            self.opened[folder] = made
            self.inputs.files[name] = made.files
        return self.opened[folder]

    def _adapter(self, name: str) -> Adapter:
        made = Adapter(name, self._folder("models", name), allow_bin="bin" in self.settings.allow)
        self.inputs.files[name] = [made.file]
        return made

    def _statistics(self, name: str) -> Checkpoint:
        made = open_statistics(name, "gram" if self.settings.method == "regmean" else "fisher")
        self.stack.callback(made.close)
        self.inputs.files[name] = made.files
        return made

    def _template(self) -> Path:
        if self.settings.files_from is not None:
            return self._folder("files_from", self.settings.files_from)
        return self.inputs.all_models[0].folder

    def _folder(self, key: str, name: str) -> Path:
        return local_folder(name, key, allow_bin="bin" in self.settings.allow)


def split_composed(name: str) -> tuple[str, str] | None:
    """Split ``MODEL+ADAPTER``, unless a folder is called so."""
    base, plus, adapter = name.rpartition("+")
    return (base, adapter) if plus and base and not Path(name).expanduser().exists() else None


def local_folder(name: str, key: str, *, allow_bin: bool = False) -> Path:
    """Return the folder of a model, downloaded from the Hub if it is no folder here.

    Raises:
        UserError: if there is no such model, naming the ``key``; or if it is an ensemble, which has no weights.
    """
    path = Path(model_path(name, key))
    if is_ensemble(path):
        raise UserError(f"{key}: '{name}' is an ensemble of logits, which has no weights to merge; give its members")
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=[*PATTERNS, *(["*.bin"] if allow_bin else [])]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"{key}: '{name}' is neither a folder nor a model that can be downloaded") from error


def _is_adapter(folder: Path) -> bool:
    return adapter_folder(str(folder)) is not None
