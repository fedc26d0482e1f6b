"""Rollouts: responses that the policy draws, as token ids, and what the models say of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from jaxtyping import Float
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase, set_seed

from reproalign.common.generation.asking import cut
from reproalign.common.generation.sampling import shares
from reproalign.common.text.collate import forward_inputs, pad_id, pad_rows
from reproalign.common.training.reference import Reference


@dataclass(frozen=True)
class Rollout:
    """A response and what is known of it.

    Attributes:
        prompt: index of the prompt.
        prompt_ids: what the policy was given.
        response_ids: what it answered, with what ended the response; at least one token.
        text: the response, without the turn's end and surrounding space: what is scored.
        ended: whether the policy ended it; otherwise the limit of tokens did.
        reward: of the reward model, as it gives it.
        logps: log π_old of each token of the response, in nats.
        ref_logps: likewise log π_0.
        values: V_old of the state before each token.
    """

    prompt: int
    prompt_ids: list[int]
    response_ids: list[int]
    text: str
    ended: bool
    reward: float
    logps: Float[Tensor, " tokens"]
    ref_logps: Float[Tensor, " tokens"]
    values: Float[Tensor, " tokens"]

    @property
    def kl(self) -> float:
        """log(π_old(y|x) / π_0(y|x)), whose mean estimates the KL, in nats."""
        return float((self.logps - self.ref_logps).sum())


@dataclass(frozen=True)
class Asker:
    """How responses are drawn: from the policy's own distribution, at temperature 1.

    Attributes:
        tokenizer: of the policy.
        stop: strings that end a response, beside the model's own end.
        end_ids: tokens that end one.
        max_new_tokens: of a response.
    """

    tokenizer: PreTrainedTokenizerBase
    stop: tuple[str, ...]
    end_ids: frozenset[int]
    max_new_tokens: int

    @torch.no_grad()
    def __call__(self, model: Any, prompts: Sequence[list[int]], seed: int) -> list[list[int]]:
        """Return the ids of a response to each of ``prompts``; ``model`` is in eval mode and not wrapped."""
        set_seed(seed)
        pad = pad_id(self.tokenizer)
        ids = pad_rows(prompts, pad, side="left").to(model.device)
        mask = pad_rows([[1] * len(row) for row in prompts], 0, side="left").to(model.device)
        options = GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            repetition_penalty=1.0,
            max_new_tokens=self.max_new_tokens,
            pad_token_id=pad,
            eos_token_id=sorted(self.end_ids),
            stop_strings=list(self.stop) or None,
        )
        named = {"tokenizer": self.tokenizer} if self.stop else {}
        output = model.generate(input_ids=ids, attention_mask=mask, generation_config=options, **named)
        return [self.trim(row) for row in output[:, ids.shape[1] :].tolist()]

    def trim(self, ids: list[int]) -> list[int]:
        """Cut off the padding behind a response; EOS is kept where the policy drew it, and not where it pads."""
        end = next((place for place, token in enumerate(ids) if token in self.end_ids), None)
        if end is not None:
            stopped = self._stopped(ids[:end])
            return ids[:end] if stopped else ids[: end + 1]
        while len(ids) > 1 and ids[-1] == self.tokenizer.pad_token_id:
            ids = ids[:-1]
        return ids

    def ended(self, ids: list[int]) -> bool:
        """Say whether a trimmed response was ended by the policy."""
        return ids[-1] in self.end_ids or self._stopped(ids)

    def text(self, ids: list[int]) -> str:
        """Return a response as text."""
        return cut(str(self.tokenizer.decode(ids, skip_special_tokens=True)), self.stop)

    def _stopped(self, ids: list[int]) -> bool:
        return any(end in str(self.tokenizer.decode(ids)) for end in self.stop)


def roll_out(
    policy: nn.Module,
    accelerator: Accelerator,
    asker: Asker,
    score: Callable[[Sequence[tuple[int, str]]], list[float]],
    measure: Callable[[Sequence[Rollout]], list[Rollout]],
    prompts: Sequence[tuple[int, list[int]]],
    *,
    at_once: int,
    seed: str,
    advance: Callable[[int], None],
) -> list[Rollout]:
    """Draw a response to each prompt, score and measure it; every process does its share and gets all of them.

    Batches, and the seed of each, do not depend on the number of processes, and neither do therefore the responses.

    Args:
        policy: as accelerate prepared it.
        accelerator: of the run.
        asker: draws.
        score: indices of prompts and responses -> rewards.
        measure: rollouts -> the same with log-probs and values.
        prompts: indices and ids.
        at_once: prompts of a batch.
        seed: of this iteration.
        advance: told how many responses this process has drawn.
    """
    model = accelerator.unwrap_model(policy)  # DDP's forward synchronises, and processes may have unequal shares
    model.eval()
    mine = shares(len(prompts), at_once, accelerator.num_processes)[accelerator.process_index]
    drawn: list[Rollout] = []
    for start in range(0, len(mine), at_once):
        places = mine[start : start + at_once]
        with accelerator.autocast():
            responses = asker(model, [prompts[place][1] for place in places], number(f"{seed}-{places[0]}"))
        for place, ids in zip(places, responses, strict=True):
            prompt, prompt_ids = prompts[place]
            drawn.append(_rollout(asker, prompt, prompt_ids, ids))
        advance(len(places))
    rewards = score([(rollout.prompt, rollout.text) for rollout in drawn])
    measured = measure([replace(rollout, reward=reward) for rollout, reward in zip(drawn, rewards, strict=True)])
    everything: list[tuple[int, Rollout]] = gather_object(list(zip(mine, measured, strict=True)))
    return [rollout for _, rollout in sorted(everything, key=lambda entry: entry[0])]


def number(words: str) -> int:
    """Return a seed, from 0 to 2³² - 1, that ``words`` stand for."""
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:4])


@torch.no_grad()
def measure_rollouts(
    model: nn.Module, reference: Reference, rollouts: Sequence[Rollout], *, pad_id: int, rows: int
) -> list[Rollout]:
    """Return ``rollouts`` with log π_old, log π_0 and V_old, on the CPU; ``rows`` of them share a forward."""
    found = []
    device = next(model.parameters()).device
    for start in range(0, len(rollouts), rows):
        part = rollouts[start : start + rows]
        batch = token_batch(part, pad_id, device)
        output = model(**forward_inputs(batch), use_cache=False)
        counts = output["counts"].tolist()
        columns = (output["per_token"], reference.completion_logps(model, batch)["per_token"], output["state_values"])
        split = zip(part, *(column.float().cpu().split(counts) for column in columns), strict=True)
        for rollout, logps, ref_logps, values in split:
            # Clones: a part of a tensor would be sent to the other processes with the whole of it.
            known = {"logps": logps.clone(), "ref_logps": ref_logps.clone(), "values": values.clone()}
            found.append(replace(rollout, **known))
    return found


def token_batch(rollouts: Sequence[Rollout], pad_id: int, device: torch.device) -> dict[str, Tensor]:
    """Return prompts and responses, padded on the right, with a ``completion_mask`` of the responses."""
    rows = [rollout.prompt_ids + rollout.response_ids for rollout in rollouts]
    masks = [[0] * len(rollout.prompt_ids) + [1] * len(rollout.response_ids) for rollout in rollouts]
    batch = {
        "input_ids": pad_rows(rows, pad_id),
        "attention_mask": pad_rows([[1] * len(row) for row in rows], 0),
        "completion_mask": pad_rows(masks, 0),
    }
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _rollout(asker: Asker, prompt: int, prompt_ids: list[int], ids: list[int]) -> Rollout:
    nothing = torch.zeros(0)
    return Rollout(prompt, prompt_ids, ids, asker.text(ids), asker.ended(ids), 0.0, nothing, nothing, nothing)
