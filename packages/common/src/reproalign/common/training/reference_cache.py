"""Values of a model on every row of a data set, computed once and kept: resumable, and in any number of processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.integrations import is_deepspeed_zero3_enabled

from reproalign.common.config.model import LogprobsConfig
from reproalign.common.console import track
from reproalign.common.errors import UserError
from reproalign.common.files import atomic_path, sha256_json
from reproalign.common.integrity import is_whole
from reproalign.common.logprobs.model import install_completion_logps
from reproalign.common.manifests import seal

# At most 64 batches per cache file, and of small data sets still up to 64 files, so that an interruption loses little.
BLOCK_BATCHES = 64


def compute_once(
    dataset: Dataset,
    columns: list[str],
    measure: Callable[[nn.Module, dict[str, Tensor]], dict[str, Tensor]],
    *,
    load_model: Callable[[], nn.Module],
    weights: str,
    collator: Any,
    cache_dir: Path,
    batch_size: int,
    logprobs: LogprobsConfig,
    label: str,
) -> dict[str, Tensor]:
    """Measure a model on every batch of ``dataset``, in order, each process its share, and keep the values.

    They are kept in ``cache_dir`` as safetensors, a file for each block of batches, in a folder named by the token ids,
    the weights and the way of computing. A later run with the same three reads them back; an interrupted one goes on
    with the blocks that are missing or damaged, in any number of processes. All processes call this, and get all
    values.

    Args:
        dataset: tokenised rows.
        columns: those that say what is measured.
        measure: from the model and a batch to named vectors.
        load_model: returns the reference model; called only by a process that finds some of its share missing.
        weights: fingerprint of the reference weights.
        collator: turns rows into a batch with ``completion_mask``.
        cache_dir: where the values are kept.
        batch_size: rows per forward.
        logprobs: how log-probs are computed.
        label: what the progress bar says.

    Returns:
        The named vectors of all batches, one batch after the other, as float32 on the CPU.

    Raises:
        UserError: if something is missing and ZeRO-3 is in force.
    """
    state = PartialState()
    tokens = sha256_json([dataset[name][:] for name in columns])
    # Padding follows the batches, and rounding the padding.
    folder = cache_dir / sha256_json([tokens, weights, logprobs.implementation, batch_size])[:32]
    # Neither the batches nor the blocks depend on the number of processes.
    block_rows = batch_size * min(BLOCK_BATCHES, math.ceil(len(dataset) / batch_size / BLOCK_BATCHES))
    files = {start: folder / f"{start:09d}.safetensors" for start in range(0, len(dataset), block_rows)}

    def fill(starts: Sequence[int]) -> None:
        missing = [start for start in starts if not is_whole(files[start])]
        if not missing:
            return
        if is_deepspeed_zero3_enabled():  # weights are sharded as they are read: no process could work alone
            raise UserError(
                "reference.mode=cached: log-probs cannot be computed under ZeRO-3; run the same command once with "
                "launch=ddp trainer.max_steps=1 and another output_dir, which caches them, or set reference.mode=copy"
            )
        model = load_model()
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
        model.to(device)
        install_completion_logps(model, logprobs)
        description = f"reference log-probs ({label})"
        for start in track(missing, description, shown=state.is_main_process):
            block = dataset.select(range(start, min(start + block_rows, len(dataset))))
            loader: DataLoader[Any] = DataLoader(block, batch_size=batch_size, collate_fn=collator)  # type: ignore[arg-type]
            batches = ({name: value.to(device) for name, value in batch.items()} for batch in loader)
            found = [measure(model, batch) for batch in batches]
            with atomic_path(files[start]) as temporary:
                save_file(
                    {name: torch.cat([part[name].float().cpu() for part in found]) for name in found[0]}, temporary
                )
            seal(files[start])

    fill(list(files)[state.process_index :: state.num_processes])
    state.wait_for_everyone()
    with state.local_main_process_first():  # nothing is left to do, unless machines do not share the folder
        fill(list(files))
    blocks = [load_file(file) for file in files.values()]
    return {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}
