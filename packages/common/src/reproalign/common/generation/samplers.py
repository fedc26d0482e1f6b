"""Models that answer prompts: in transformers or in vLLM, asked by a chat template or by a transcript."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from transformers import PreTrainedTokenizerBase, set_seed

from reproalign.common.config import LaunchConfig, ModelConfig
from reproalign.common.data.records import Message
from reproalign.common.errors import UserError, choose
from reproalign.common.generation.filters import clean_lmflow
from reproalign.common.generation.noise import noisy_scores, stream_seed
from reproalign.common.generation.sampling import Sampler, SamplingRules, row_seeds
from reproalign.common.launch.plan import check_in_force
from reproalign.common.models.ensemble_file import is_ensemble
from reproalign.common.models.load import load_causal_lm, load_tokenizer, model_path
from reproalign.common.text.collate import pad_rows
from reproalign.common.text.prompts import encode_prompt, prompt_text
from reproalign.common.text.templates import SPEAKERS, TURN_MARKS, check_tokenizer, render, turn_header, with_system
from reproalign.common.text.tokenize import Encoder

logger = logging.getLogger(__name__)

_PROBE = "an answer"
Engine = Callable[[SamplingRules], Sampler]  # a loaded model: from rules to what samples by them


def transformers_sampler(model: ModelConfig, rules: SamplingRules) -> Sampler:
    """Load ``model`` into transformers."""
    return transformers_engine(model, rules.layout)(rules)


def transformers_engine(model: ModelConfig, layout: str) -> Engine:
    """Load ``model`` into transformers for samplers of several rules, all of one layout."""
    tokenizer = asking_tokenizer(model, layout)
    loaded: Any = load_causal_lm(model, trainable=False)
    loaded.to(PartialState().device)
    return lambda rules: _transformers_rules(tokenizer, loaded, rules)


def _transformers_rules(tokenizer: PreTrainedTokenizerBase, loaded: Any, rules: SamplingRules) -> Sampler:
    stop = stops(tokenizer, rules)
    options: dict[str, Any] = {"pad_token_id": tokenizer.pad_token_id}
    if rules.temperature and not rules.own_noise:
        options |= {"do_sample": True, "temperature": rules.temperature, "top_p": rules.top_p, "top_k": rules.top_k}
    else:
        options |= {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if stop:
        options |= {"stop_strings": list(stop), "tokenizer": tokenizer}
    draw = _draw_each if rules.own_noise else _draw_batch

    @torch.no_grad()
    def generate(rows: Sequence[list[int]], seed: int | Sequence[int]) -> list[list[str]]:
        seeds = row_seeds(seed, len(rows))
        if isinstance(seed, int):
            set_seed(seed)
        ids = pad_rows(rows, int(tokenizer.pad_token_id), side="left").to(loaded.device)  # type: ignore[arg-type]
        mask = pad_rows([[1] * len(row) for row in rows], 0, side="left").to(loaded.device)
        responses: list[list[str]] = [[] for _ in rows]
        while len(responses[0]) < rules.n:
            done = len(responses[0])
            count = min(max(1, rules.batch_size // len(rows)), rules.n - done)
            new = draw(loaded, ids, mask, rules, range(done, done + count), seeds, options)
            texts = [str(tokenizer.decode(row, skip_special_tokens=True)) for row in new]
            for index, found in enumerate(responses):
                found += [finish(text, rules, stop) for text in texts[index * count : (index + 1) * count]]
        return responses

    return Sampler(partial(prompt_ids, tokenizer, rules=rules), generate)


def _draw_batch(
    model: Any,
    ids: Tensor,
    mask: Tensor,
    rules: SamplingRules,
    numbers: range,
    seeds: Sequence[int],
    options: dict[str, Any],
) -> Sequence[Tensor]:
    """Return the new tokens of responses ``numbers`` to each row, with the noise of the process's one generator."""
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        num_return_sequences=len(numbers),
        max_new_tokens=rules.limit(seeds[0]),
        **options,
    )
    return list(output[:, ids.shape[1] :])


def _draw_each(
    model: Any,
    ids: Tensor,
    mask: Tensor,
    rules: SamplingRules,
    numbers: range,
    seeds: Sequence[int],
    options: dict[str, Any],
) -> Sequence[Tensor]:
    """Return the new tokens of responses ``numbers`` to each row, each with noise and a length of its own."""
    streams = [stream_seed(seed, number) for seed in seeds for number in numbers]
    limits = [rules.limit(stream) for stream in streams]
    output = model.generate(
        input_ids=ids.repeat_interleave(len(numbers), 0),
        attention_mask=mask.repeat_interleave(len(numbers), 0),
        max_new_tokens=max(limits),
        logits_processor=noisy_scores(
            streams, ids.device, temperature=rules.temperature, top_p=rules.top_p, top_k=rules.top_k
        ),
        **options,
    )
    return [row[ids.shape[1] :][:limit] for row, limit in zip(output, limits, strict=True)]


def vllm_sampler(model: ModelConfig, rules: SamplingRules) -> Sampler:
    """Load ``model`` into vLLM.

    Raises:
        UserError: if vLLM is not installed, or the model is an ensemble.
    """
    return vllm_engine(model, rules.layout)(rules)


def vllm_engine(model: ModelConfig, layout: str) -> Engine:
    """Load ``model`` into vLLM for samplers of several rules, all of one layout.

    Raises:
        UserError: if vLLM is not installed, or the model is an ensemble.
    """
    try:
        from vllm import LLM  # type: ignore[import-not-found]
    except ImportError as error:
        raise UserError(
            "backend=vllm needs vLLM, which is not installed; pip install vllm, or set backend=transformers"
        ) from error
    if is_ensemble(model_path(model.name)):
        raise UserError(f"backend=vllm: {model.name} is an ensemble, which vLLM cannot run; set backend=transformers")
    tokenizer = asking_tokenizer(model, layout)
    loaded = LLM(
        model=model_path(model.name),
        tokenizer=model_path(model.tokenizer or model.name),
        revision=model.revision,
        dtype=model.dtype,
        trust_remote_code=model.trust_remote_code,
    )
    return lambda rules: _vllm_rules(tokenizer, loaded, rules)


def _vllm_rules(tokenizer: PreTrainedTokenizerBase, loaded: Any, rules: SamplingRules) -> Sampler:
    from vllm import SamplingParams

    stop = stops(tokenizer, rules)

    def generate(rows: Sequence[list[int]], seed: int | Sequence[int]) -> list[list[str]]:
        seeds = row_seeds(seed, len(rows))
        params = [  # a seed for each: with one for all, every prompt would draw with the same noise
            SamplingParams(
                n=rules.n,
                temperature=rules.temperature,
                top_p=rules.top_p,
                top_k=rules.top_k or -1,  # 0 means the same in newer versions alone
                max_tokens=rules.limit(seeds[0]),
                stop=list(stop),
                seed=own % 2**63,  # a signed 64-bit number holds it
            )
            for own in seeds
        ]
        outputs = loaded.generate([{"prompt_token_ids": row} for row in rows], params, use_tqdm=False)
        return [[finish(output.text, rules, stop) for output in request.outputs] for request in outputs]

    return Sampler(partial(prompt_ids, tokenizer, rules=rules), generate)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: list[Message], rules: SamplingRules) -> list[int]:
    """Return what the model is given: a prompt (of an over-long one the end), and what the response begins with."""
    if rules.layout == "chat":
        prompt = with_system(prompt, rules.system_message, str(tokenizer.chat_template))
    text = prompt_text(tokenizer, prompt, rules.layout)
    ids = encode_prompt(tokenizer, text, rules.layout, own_tokens=rules.special_tokens == "own")
    limit = rules.max_prompt_length
    if limit is not None and len(ids) > limit:
        logger.warning("a prompt of %d tokens loses its beginning (max_prompt_length=%d)", len(ids), limit)
        ids = ids[-limit:]
    return [*ids, *(Encoder(tokenizer).continuation(rules.response_prefix) if rules.response_prefix else [])]


def stops(tokenizer: PreTrainedTokenizerBase, rules: SamplingRules) -> tuple[str, ...]:
    """Return the strings at which generation ends: none where the text is cleaned afterwards."""
    if rules.clean != "stop":
        return ()
    return rules.stop if rules.stop is not None else turn_end(tokenizer, rules.layout)


def finish(text: str, rules: SamplingRules, stop: Sequence[str]) -> str:
    """Return the response in a generated text; an empty one if nothing is left of it."""
    if rules.clean == "none":
        return text
    return clean_lmflow(text) or "" if rules.clean == "lmflow" else cut(text, stop)


def turn_end(tokenizer: PreTrainedTokenizerBase, layout: str = "chat") -> tuple[str, ...]:
    """Return what the layout puts after an answer, if anything: models trained with it end their answers so."""
    if layout == "lmflow":
        return (f"{TURN_MARKS[layout]}{SPEAKERS['user']}",)  # without the colon, as in RAFT's own cleaning of responses
    if layout in TURN_MARKS:
        return (turn_header("user", layout),)
    dialogue = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": _PROBE}]
    end = render(tokenizer, dialogue).rpartition(_PROBE)[2].strip()
    return (end,) if end else ()


def cut(text: str, stop: Sequence[str]) -> str:
    """Return ``text`` up to the first of the strings ``stop``, without surrounding space."""
    for end in stop:
        text = text.partition(end)[0]
    return text.strip()


def asking_tokenizer(model: ModelConfig, layout: str) -> PreTrainedTokenizerBase:
    """Load and check the tokenizer of ``model``; for transcripts it needs no chat template.

    Raises:
        UserError: if it has no EOS token, or no chat template where one is needed.
    """
    tokenizer = load_tokenizer(model)
    if layout in TURN_MARKS and not (model.chat_template or tokenizer.chat_template):
        if tokenizer.eos_token_id is None:
            raise UserError(f"the tokenizer of '{tokenizer.name_or_path}' has no EOS token; set model.tokenizer")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer
    check_tokenizer(tokenizer, chat_template=model.chat_template)
    return tokenizer


def start_sampling(backend: str, launch: LaunchConfig) -> tuple[PartialState, str]:
    """Return the processes that sample, and what ``backend`` stands for with them (:func:`choose_backend`).

    Raises:
        UserError: for a launch that is not in force, or that does not go with the back end.
    """
    state = PartialState(cpu=not torch.accelerator.is_available())
    chosen = choose_backend(backend, launch, state.num_processes)
    check_in_force(launch.strategy, state.distributed_type.value)
    return state, chosen


def choose_backend(backend: str, launch: LaunchConfig, processes: int) -> str:
    """Decide what ``auto`` stands for: vLLM where it is installed, for one process with a GPU.

    Raises:
        UserError: for an unknown backend, or one that does not go with the launch.
    """
    choose("backend", backend, ["auto", *SAMPLERS])
    if launch.strategy not in ("single", "ddp"):
        raise UserError(f"launch.strategy={launch.strategy} is for training; sample with launch=single or ddp")
    if backend == "vllm" and processes > 1:
        raise UserError("backend=vllm uses the GPUs of one process; set launch=single")
    if backend != "auto":
        return backend
    fast = importlib.util.find_spec("vllm") is not None and torch.cuda.is_available() and processes == 1
    return "vllm" if fast else "transformers"


SAMPLERS: dict[str, Callable[[ModelConfig, SamplingRules], Sampler]] = {
    "transformers": transformers_sampler,
    "vllm": vllm_sampler,
}
ENGINES: dict[str, Callable[[ModelConfig, str], Engine]] = {
    "transformers": transformers_engine,
    "vllm": vllm_engine,
}
