"""One optimiser step of preference training, for the benchmarks: a small Llama, batches of random ids, our trainers."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from reproalign.common.config.model import LogprobsConfig
from reproalign.common.training.objective import Objective
from reproalign.common.training.reference import FrozenReference
from reproalign.common.training.trainers import TRAINERS
from reproalign.radpo.objectives import OBJECTIVES
from reproalign.radpo.risk import CVaR

VOCABULARY, BETA, LEVEL = 49_152, 0.1, 0.95
# Methods of reproalign.radpo that train one policy against one reference; PPO trains a value head besides.
METHODS = [
    name
    for name, needs in ((name, objective().needs) for name, objective in OBJECTIVES.items())
    if needs.reference != "none" and needs.value_head is None
]
Batch = dict[str, Tensor]
Step = Callable[[Batch], float]
Made = tuple[Step, nn.Module]  # a step, and the policy that it trains


def policy(arguments: argparse.Namespace, seed: int = 1, spread: float = 0.05) -> LlamaForCausalLM:
    """Make the small Llama."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=arguments.hidden,
        intermediate_size=4 * arguments.hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=4,
        tie_word_embeddings=True,
        initializer_range=spread,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model: LlamaForCausalLM = LlamaForCausalLM(config).to(arguments.device, getattr(torch, arguments.dtype))
    return model


def reference(arguments: argparse.Namespace) -> LlamaForCausalLM:
    """Make another, less even one: random responses are likelier under the policy, so KTO's KL is not cut off at 0."""
    return policy(arguments, seed=2, spread=0.06)


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


def rows_for(method: str, pairs: Batch) -> Batch:
    """Turn ``pairs`` into what ``method`` trains on: themselves, or examples, for KTO each with the next one's response
    besides.
    """
    needs = OBJECTIVES[method]().needs
    if needs.rows == "pairs":
        return pairs
    ids, completion = pairs["input_ids"], pairs["completion_mask"]
    rows = pairs | {"label": torch.arange(len(ids), device=ids.device) < len(ids) // 2}
    if not needs.mismatched:
        return rows
    mismatched = pairs | {"input_ids": torch.where(completion.bool(), ids.roll(-1, 0), ids)}
    return rows | {f"KL_{name}": value for name, value in mismatched.items()}


def optimiser_step(trainer: Any) -> Made:
    """Return a function that makes one step and returns its loss, and the policy."""
    optimiser = torch.optim.AdamW(trainer.model.parameters(), lr=1e-6)

    def step(inputs: Batch) -> float:
        trainer.model.train()
        loss = trainer.compute_loss(trainer.model, dict(inputs))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step, trainer.model


def our_step(objective: Objective, arguments: argparse.Namespace, folder: str, chunk_size: int | None = None) -> Made:
    """Make a step of one of our trainers."""
    made = TRAINERS[objective.needs.rows](
        objective=objective,
        model=policy(arguments),
        args=TrainingArguments(folder, use_cpu=arguments.device == "cpu", report_to=[], remove_unused_columns=False),
        reference=FrozenReference(reference(arguments)),
        logprobs=LogprobsConfig(chunk_size=chunk_size),
    )
    return optimiser_step(made)


def method_step(method: str, arguments: argparse.Namespace, folder: str, chunk_size: int | None = None) -> Made:
    """Make a step of ``reproalign.radpo``; Ra-DPO's risk is the CVaR at LEVEL."""
    options: dict[str, Any] = {"beta": BETA, **({"risk": CVaR(LEVEL)} if method == "ra-dpo" else {})}
    return our_step(OBJECTIVES[method](**options), arguments, folder, chunk_size)
