"""One optimiser step of preference training: ours against ``trl.DPOTrainer``, side by side in one run.

Both take the same small Llama (49,152-token vocabulary, tied embeddings), the same reference, the same batch of token
ids and AdamW. A step is: policy and reference log-probs, loss, backward, optimiser step, gradients freed. Timed:
medians over interleaved repetitions. Memory: the peak of live tensor bytes above the level at the start of the step
(activations, gradients and optimiser temporaries), counted tensor by tensor on the CPU, by the allocator on a GPU.
On the CPU, scratch memory inside a kernel is not seen. Before every length both models get their first weights back,
and their losses must agree (see `check_losses`).

TRL runs as it comes: this version always computes log-probs in chunks (there is no option for it), and besides them
the entropy, mean logits and top-1 hits that it logs; their cost is part of its step.
Not measured: data loading, logging, several processes. Times mean little when other work shares the machine: the load
average before every length and all samples stand in the output, minima beside the medians.

    python benchmarks/preference_step.py --tokens 256 512 1024 2048 --output results/benchmarks/preference_step.json
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import statistics
import sys
import tempfile
import time
import weakref
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments
from trl import DPOConfig, DPOTrainer

from reproalign.common.files import write_json
from reproalign.common.testing import tiny_tokenizer
from reproalign.common.training.reference import FrozenReference
from reproalign.mmpo.config import LossConfig
from reproalign.mmpo.trainer import MMPOTrainer

VOCABULARY, BETA = 49_152, 0.1
Batch = dict[str, Tensor]
Step = Callable[[Batch], float]


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that operations made and that are still alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {value.untyped_storage().data_ptr() for value in _tensors([args, kwargs])}
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.seen | given:
                self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage.data_ptr(), storage.nbytes()
        self.seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)

        def free() -> None:
            self.seen.discard(key)
            self.now -= size

        weakref.finalize(storage, free)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for part in value for tensor in _tensors(part)] if isinstance(value, list | tuple) else []


def model(seed: int, arguments: argparse.Namespace) -> LlamaForCausalLM:
    """Make the small Llama."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=arguments.hidden,
        intermediate_size=4 * arguments.hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=4,
        tie_word_embeddings=True,
        initializer_range=0.05,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).to(arguments.device, getattr(torch, arguments.dtype))


def batch(tokens: int, arguments: argparse.Namespace) -> Batch:
    """Make random pairs: a common prompt, by default a quarter of the tokens, and responses of the rest."""
    prompt = tokens // 4 if arguments.prompt is None else arguments.prompt
    if not 0 < prompt < tokens:
        raise SystemExit(f"--prompt {prompt} must be between 1 and {tokens - 1} for --tokens {tokens}")
    generator = torch.Generator().manual_seed(tokens)
    ids = torch.randint(3, VOCABULARY, (2 * arguments.pairs, tokens), generator=generator)
    ids[arguments.pairs :, :prompt] = ids[: arguments.pairs, :prompt]
    mask = torch.ones_like(ids)
    completion = mask.clone()
    completion[:, :prompt] = 0
    values = {"input_ids": ids, "attention_mask": mask, "completion_mask": completion}
    return {name: value.to(arguments.device) for name, value in values.items()}


def trl_step(arguments: argparse.Namespace, folder: str) -> tuple[Step, nn.Module]:
    """TRL's trainer with its defaults, without activation checkpointing, as ours."""
    rows = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    settings = DPOConfig(
        output_dir=folder, beta=BETA, bf16=False, use_cpu=arguments.device == "cpu", report_to=[],
        gradient_checkpointing=False, max_length=None,
    )  # fmt: skip
    trainer = DPOTrainer(
        model=model(1, arguments), ref_model=model(2, arguments), args=settings, train_dataset=rows,
        processing_class=tiny_tokenizer(),
    )  # fmt: skip
    return optimiser_step(trainer), trainer.model


def our_step(arguments: argparse.Namespace, folder: str) -> tuple[Step, nn.Module]:
    """Ours: the chunked log-probs are the only difference that matters."""
    trainer = MMPOTrainer(
        model=model(1, arguments),
        args=TrainingArguments(folder, use_cpu=arguments.device == "cpu", report_to=[], remove_unused_columns=False),
        loss=LossConfig(beta=BETA),
        variant="paper",
        reference=FrozenReference(model(2, arguments)),
    )
    return optimiser_step(trainer), trainer.model


def optimiser_step(trainer: Any) -> Step:
    """Return a function that makes one step and returns its loss."""
    optimiser = torch.optim.AdamW(trainer.model.parameters(), lr=1e-6)

    def step(inputs: Batch) -> float:
        trainer.model.train()
        loss = trainer.compute_loss(trainer.model, dict(inputs))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def check_losses(losses: dict[str, float], tokens: int, dtype: str) -> float:
    """Both must compute the same; returns their relative difference.

    Tolerances: 1e-5 in float32 up to 256 tokens. Beyond, 1e-3: the loss is a small difference of row sums that grow
    with the length, and the two add a row's float32 log-probs in different orders. In bfloat16 2e-2.
    """
    tolerance = 2e-2 if dtype == "bfloat16" else 1e-5 if tokens <= 256 else 1e-3
    difference = abs(losses["ours"] - losses["trl"]) / abs(losses["trl"])
    if difference > tolerance:
        raise SystemExit(f"{tokens} tokens: the losses differ by {difference:.1e}, more than {tolerance}: {losses}")
    return difference


def cpu_name() -> str:
    """Return the processor's name as Linux gives it, or the architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def seconds(step: Step, inputs: Batch) -> float:
    """Time one step."""
    gc.collect()
    start = time.perf_counter()
    step(inputs)
    if inputs["input_ids"].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_bytes(step: Step, inputs: Batch) -> int:
    """Measure the peak of one step above its start."""
    gc.collect()
    if inputs["input_ids"].is_cuda:
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
        step(inputs)
        return torch.cuda.max_memory_allocated() - start
    with LiveBytes() as live:
        step(inputs)
    return live.peak


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description="One preference step, ours against TRL's.")
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--prompt", type=int, help="tokens of the prompt (default: a quarter)")
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rows = []
    table = Table("tokens", "ours (s)", "TRL (s)", "time ratio", "of minima", "ours (MiB)", "TRL (MiB)", "memory ratio")
    with tempfile.TemporaryDirectory() as folder:
        made = {"ours": our_step(arguments, folder), "trl": trl_step(arguments, folder)}
        steps = {name: step for name, (step, _) in made.items()}
        first = [parameter.detach().clone() for parameter in made["ours"][1].parameters()]
        for tokens in arguments.tokens:
            inputs = batch(tokens, arguments)
            load = os.getloadavg()[0]
            for _, policy in made.values():
                with torch.no_grad():
                    for parameter, value in zip(policy.parameters(), first, strict=True):
                        parameter.copy_(value)
            losses = {name: step(inputs) for name, step in steps.items()}  # also the warm-up
            difference = check_losses(losses, tokens, arguments.dtype)
            times: dict[str, list[float]] = {name: [] for name in steps}
            for _ in track(range(arguments.repeats), description=f"{tokens} tokens", console=Console(stderr=True)):
                for name, step in steps.items():
                    times[name].append(seconds(step, inputs))
            memory = {name: peak_bytes(step, inputs) for name, step in steps.items()}
            medians = {name: statistics.median(values) for name, values in times.items()}
            minima = {name: min(values) for name, values in times.items()}
            row = {
                "tokens": tokens,
                "load_average_before": load,
                "losses": losses,
                "loss_relative_difference": difference,
                "median_seconds": medians,
                "minimum_seconds": minima,
                "seconds": times,
                "peak_bytes": memory,
                "time_ratio": medians["ours"] / medians["trl"],
                "time_ratio_of_minima": minima["ours"] / minima["trl"],
                "memory_ratio": memory["ours"] / memory["trl"],
            }
            rows.append(row)
            table.add_row(
                str(tokens), f"{medians['ours']:.3f}", f"{medians['trl']:.3f}", f"{row['time_ratio']:.2f}",
                f"{row['time_ratio_of_minima']:.2f}",
                f"{memory['ours'] / 2**20:.0f}", f"{memory['trl'] / 2**20:.0f}", f"{row['memory_ratio']:.2f}",
            )  # fmt: skip
    Console().print(table)
    if arguments.output:
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
        machine = {
            "platform": platform.platform(),
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "device": torch.cuda.get_device_name() if arguments.device.startswith("cuda") else "cpu",
            "torch_threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "versions": {name: version(name) for name in ("torch", "transformers", "trl")},
        }
        command = f"python {Path(sys.argv[0]).as_posix()} {' '.join(sys.argv[1:])}"
        write_json(arguments.output, {"command": command, "arguments": settings, "machine": machine, "rows": rows})


if __name__ == "__main__":
    main()
