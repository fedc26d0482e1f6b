"""Responses of a model to held-out prompts and their rewards: sampled, cleaned, scored, shared among processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from accelerate import PartialState

from reproalign.ama.frontier.config import EvaluateConfig
from reproalign.ama.rules import AmaRules
from reproalign.common.config.model import LoadedRewardModelConfig
from reproalign.common.data.records import Message
from reproalign.common.errors import UserError
from reproalign.common.generation.rules import SamplingRules
from reproalign.common.generation.samplers import SAMPLERS
from reproalign.common.generation.samples import RESPONSES, Sampled, read_sampled, write_rows
from reproalign.common.generation.sampling import sample_shared, shares
from reproalign.common.reward.rules import RewardRules, scoring_rules, told_rules
from reproalign.common.text.templates import TURN_MARKS
from reproalign.common.verbs.score import CHUNK, score_responses

VLLM_CHUNK = 128  # prompts that vLLM gets at once
PARTS = ".rewards-{}.jsonl"  # of a process


@dataclass(frozen=True)
class Answered:
    """A prompt, the responses to it, and what they earn.

    Attributes:
        id: of the prompt: its place among the prompts.
        prompt: its turns.
        responses: as they are scored: cleaned, if the variant does.
        rewards: of each response, None if none were asked for.
        discarded: whether the released rule would discard each response; all False where the variant cleans none.
    """

    id: int | str
    prompt: list[Message]
    responses: list[str]
    rewards: list[float] | None
    discarded: list[bool]

    @property
    def reward(self) -> float:
        """The mean reward of the responses, discarded ones included (column A of the release)."""
        assert self.rewards is not None
        return sum(self.rewards) / len(self.rewards)


def sampling_rules(config: EvaluateConfig, variant: AmaRules) -> SamplingRules:
    """Return how responses are drawn: 196 new tokens, or as released 127 or 128, at temperature 1.

    Raises:
        UserError: for options that nothing can be sampled with.
    """
    shortest, longest = variant.eval_lengths if config.max_new_tokens is None else (None, config.max_new_tokens)
    rules = SamplingRules(
        n=config.n,
        max_new_tokens=longest,
        temperature=config.temperature,
        top_p=config.top_p,
        batch_size=config.batch_size,
        max_prompt_length=config.max_prompt_length,
        stop=None,
        layout=config.layout,
        clean="lmflow" if variant.cleaned else "stop",
        min_new_tokens=shortest,
        own_noise=config.temperature > 0,
    )
    rules.check()
    if config.n > 1 and not config.temperature:
        raise UserError(f"temperature=0 would make all n={config.n} responses the same; raise it, or set n=1")
    return rules


def reward_model(config: EvaluateConfig) -> LoadedRewardModelConfig:
    """Return how the reward model is held."""
    options = config.scoring
    return LoadedRewardModelConfig(name=str(config.reward), revision=options.revision, dtype=options.dtype)


def reward_rules(config: EvaluateConfig, variant: AmaRules) -> RewardRules:
    """Return how the reward model reads a text; as released a transcript's response follows its header directly.

    Raises:
        UserError: for a model or options that nothing can be scored with.
    """
    model = reward_model(config)
    rules = scoring_rules(model, told_rules(model, config.scoring.text, None), "reward")
    if variant.unseparated and config.scoring.text.response_separator is None and rules.layout in TURN_MARKS:
        return replace(rules, response_separator="none")
    return rules


def respond(
    config: EvaluateConfig, rules: SamplingRules, backend: str, prompts: list[list[Message]], folder: Path
) -> list[Sampled]:
    """Return the responses to all prompts on every process; ``responses.jsonl`` in ``folder`` holds them as drawn.

    Args:
        config: of the evaluation.
        rules: :func:`sampling_rules`.
        backend: ``transformers`` or ``vllm``.
        prompts: of all processes.
        folder: of the run.
    """
    state = PartialState()
    responses = sample_shared(
        prompts,
        folder,
        lambda: SAMPLERS[backend](config.model, rules),
        seed=config.seed,
        at_once=VLLM_CHUNK if backend == "vllm" else max(1, config.batch_size // config.n),
        state=state,
    )
    if state.is_main_process:
        rows = enumerate(zip(prompts, responses, strict=True))
        drawn = [{"id": number, "prompt": prompt, "responses": texts} for number, (prompt, texts) in rows]
        write_rows(folder / RESPONSES, drawn)
    state.wait_for_everyone()
    return read_sampled(folder / RESPONSES)


def score(config: EvaluateConfig, rules: RewardRules, rows: Sequence[Sampled], folder: Path) -> list[Sampled]:
    """Return ``rows`` with rewards on the first process, and none on the others.

    Processes take whole chunks in turns, so that texts share a forward with the same ones however many there are.

    Args:
        config: of the evaluation.
        rules: :func:`reward_rules`.
        rows: prompts and responses, all with equally many.
        folder: of the run.
    """
    state, model = PartialState(), reward_model(config)
    at_once = max(1, CHUNK * config.scoring.batch_size // config.n)
    dealt = shares(len(rows), at_once, state.num_processes)
    paths = [folder / PARTS.format(rank) for rank in range(state.num_processes)]
    mine = [rows[index] for index in dealt[state.process_index]]
    if mine:
        path = paths[state.process_index]
        score_responses(mine, model, rules, path, batch_size=config.scoring.batch_size, key="reward")
    state.wait_for_everyone()
    if not state.is_main_process:
        return []
    found = list(rows)
    for path, share in zip(paths, dealt, strict=True):
        for index, row in zip(share, read_sampled(path, scored=True) if share else [], strict=True):
            found[index] = row
    return found
