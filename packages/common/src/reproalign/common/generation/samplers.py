"""Models that answer prompts, by back end: transformers, or vLLM where it is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from reproalign.common.config.launch import LaunchConfig
from reproalign.common.config.model import LoadedModelConfig
from reproalign.common.errors import UserError
from reproalign.common.generation.asking import asking_tokenizer, finish, prompt_ids, stops
from reproalign.common.generation.rules import SamplingRules
from reproalign.common.generation.sampling import Engine, Sampler, row_seeds
from reproalign.common.generation.transformers_engine import transformers_engine, transformers_sampler
from reproalign.common.launch.plan import check_in_force
from reproalign.common.models.ensemble_file import is_ensemble
from reproalign.common.models.load import model_path

VLLM_OWN = {"gemma_numerics": "a Gemma", "attn_implementation": "an attention", "quantization": "a quantization"}


def vllm_sampler(model: LoadedModelConfig, rules: SamplingRules) -> Sampler:
    """Load ``model`` into vLLM.

    Raises:
        UserError: if vLLM is not installed, or the model is an ensemble.
    """
    return vllm_engine(model, rules.layout)(rules)


def vllm_engine(model: LoadedModelConfig, layout: str) -> Engine:
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
        model=model_path(model.name, largest=None),
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


def start_sampling(backend: str, launch: LaunchConfig, model: LoadedModelConfig) -> tuple[PartialState, str]:
    """Return the processes that sample, and what ``backend`` stands for with them (:func:`choose_backend`).

    Raises:
        UserError: for a launch that is not in force, or that does not go with the back end.
    """
    state = PartialState(cpu=not torch.accelerator.is_available())
    chosen = choose_backend(backend, launch, state.num_processes, model)
    check_in_force(launch.strategy, state.distributed_type.value)
    return state, chosen


def choose_backend(backend: str, launch: LaunchConfig, processes: int, model: LoadedModelConfig) -> str:
    """Decide what ``auto`` stands for: vLLM where it is installed, for one process with a GPU.

    vLLM has its own Gemma and its own attention, and reads weights as they were saved: ``model.gemma_numerics``,
    ``attn_implementation`` and ``quantization`` need transformers.

    Raises:
        UserError: for a back end that does not go with the launch or the model.
    """
    if launch.strategy not in ("single", "ddp"):
        raise UserError(f"launch.strategy={launch.strategy} is for training; sample with launch=single or ddp")
    if backend == "vllm" and processes > 1:
        raise UserError("backend=vllm uses the GPUs of one process; set launch=single")
    needed = [key for key in VLLM_OWN if getattr(model, key) not in (None, "current")]
    if backend == "vllm" and needed:
        key = needed[0]
        raise UserError(
            f"backend=vllm has {VLLM_OWN[key]} of its own, which {key}={getattr(model, key)} does not change; set "
            "backend=transformers"
        )
    if backend != "auto":
        return backend
    able = processes == 1 and not needed
    fast = able and importlib.util.find_spec("vllm") is not None and torch.cuda.is_available()
    return "vllm" if fast else "transformers"


SAMPLERS: dict[str, Callable[[LoadedModelConfig, SamplingRules], Sampler]] = {
    "transformers": transformers_sampler,
    "vllm": vllm_sampler,
}
ENGINES: dict[str, Callable[[LoadedModelConfig, str], Engine]] = {
    "transformers": transformers_engine,
    "vllm": vllm_engine,
}
