"""What is kept of an iteration: its policy, as a model folder for any verb, and what a restart needs beside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from reproalign.ama.align.ppo_config import PPOConfig
from reproalign.common.errors import UserError
from reproalign.common.files import put_in_place, write_json
from reproalign.common.manifests import seal
from reproalign.common.models.adapters import Model, adapter_folder
from reproalign.common.models.forward import unwrap_peft
from reproalign.common.models.load import merge_adapter
from reproalign.common.models.value_head import NAME
from reproalign.common.records.handed_on import as_written
from reproalign.common.training.fit import FINAL

NOTE = "ppo.json"
ADAPTER = "adapter"  # beside a merged model
CRITIC = "critic"


@dataclass(frozen=True)
class Standing:
    """What a run has come to, beside weights.

    Attributes:
        iteration: the last one that is done; 0: none.
        eta: coefficient of the KL penalty of the next one.
        baseline: subtracted from rewards; None: the mean of the next iteration's is to be taken.
    """

    iteration: int
    eta: float
    baseline: float | None


@dataclass(frozen=True)
class Kept:
    """An ``iteration-K`` folder that a run goes on from.

    Attributes:
        weights: the policy's folder; of a run with LoRA the adapter's.
        critic: the value head's.
        standing: of the run at that time.
    """

    weights: Path
    critic: Path
    standing: Standing


def keep_iteration(
    folder: Path, config: PPOConfig, model: Model, tokenizer: PreTrainedTokenizerBase, standing: Standing
) -> None:
    """Write ``folder`` (``iteration-K``), whole or not at all: ``model/``, ``critic/`` and ``ppo.json``.

    With ``model.lora.merge`` the adapter stands beside the merged model.
    """
    with _whole(folder) as temporary:
        save_policy(temporary / FINAL, config, model, tokenizer, adapter=temporary / ADAPTER)
        (temporary / CRITIC).mkdir()
        head = getattr(unwrap_peft(model), NAME).state_dict()
        save_file(
            {f"{NAME}.{name}": tensor.cpu() for name, tensor in head.items()},
            temporary / CRITIC / "value_head.safetensors",
        )
        write_json(temporary / NOTE, asdict(standing))
        seal(temporary)


def keep_final(folder: Path, config: PPOConfig, model: Model, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the policy of the end to ``folder``, whole or not at all."""
    with (
        TemporaryDirectory(dir=folder.parent, prefix=".adapter-", suffix=".tmp") as adapter,
        _whole(folder) as temporary,
    ):
        save_policy(temporary, config, model, tokenizer, adapter=Path(adapter))


def save_policy(
    folder: Path, config: PPOConfig, model: Model, tokenizer: PreTrainedTokenizerBase, *, adapter: Path
) -> None:
    """Save the policy without its value head, as a model or an adapter that ``from_pretrained`` reads.

    Args:
        folder: where to.
        config: with ``model.lora.merge`` the adapter is merged.
        model: the policy, not wrapped.
        tokenizer: saved beside it.
        adapter: where the adapter goes if it is merged.
    """
    merge = config.model.lora.enabled and config.model.lora.merge
    target: Any = model
    if config.model.lora.enabled:  # PEFT takes its own tensors alone
        target.save_pretrained(str(adapter if merge else folder))
    else:
        weights = {name: tensor for name, tensor in target.state_dict().items() if not name.startswith(f"{NAME}.")}
        target.save_pretrained(folder, state_dict=weights)
    if merge:
        merge_adapter(config.model, tokenizer, adapter).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def read_kept(config: PPOConfig) -> Kept | None:
    """Return the iteration that ``restart_from`` names; None if it names none.

    Raises:
        UserError: if it is no such folder, does not go with the options, or is not before the last iteration.
    """
    if config.restart_from is None:
        return None
    folder = Path(config.restart_from).expanduser()
    try:
        as_written(folder)
        standing = Standing(**json.loads((folder / NOTE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"restart_from={folder}: no iteration of a PPO run (no readable {NOTE}); give a folder RUN/iteration-K"
        ) from error
    weights = folder / ADAPTER if (folder / ADAPTER).is_dir() else folder / FINAL
    adapted = adapter_folder(str(weights)) is not None
    if adapted != config.model.lora.enabled:
        raise UserError(
            f"restart_from={folder} holds {'an adapter' if adapted else 'a whole model'}; set "
            f"model.lora.enabled={str(adapted).lower()}"
        )
    if standing.iteration >= config.iterations:
        raise UserError(
            f"restart_from={folder} is iteration {standing.iteration}, and iterations={config.iterations} counts from "
            "the beginning; raise it"
        )
    return Kept(weights, folder / CRITIC, standing)


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    put_in_place(temporary, folder)
