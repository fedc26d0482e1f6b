"""The model as lm-eval asks it: transformers, in one process or several, or vLLM."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather
from transformers import PreTrainedTokenizerBase

from reproalign.common.config.model import LoadedModelConfig
from reproalign.common.errors import UserError, did_you_mean
from reproalign.common.evaluation.suites.config import SuiteConfig
from reproalign.common.models.ensemble_file import is_ensemble
from reproalign.common.models.load import model_path
from reproalign.common.text.templates import TEMPLATES, set_template

OWN = "tokenizer"


def use_template(tokenizer: PreTrainedTokenizerBase, suite: SuiteConfig) -> str | None:
    """Give the tokenizer the template that the suite names, and return its text; None: prompts stay plain text.

    Raises:
        UserError: for an unknown name, or a tokenizer without a template of its own.
    """
    template = suite.chat_template
    if template is None:
        return None
    if template == OWN and not tokenizer.chat_template:
        raise UserError(
            f"suite.chat_template={OWN}: the tokenizer of '{tokenizer.name_or_path}' has no chat template; choose one "
            f"of {', '.join(TEMPLATES)}, a Jinja file, or null"
        )
    if template not in (OWN, *TEMPLATES) and not Path(template).is_file():
        raise UserError(
            f"suite.chat_template={template}: no such template{did_you_mean(template, [OWN, *TEMPLATES])} and no such "
            f"file; there are {', '.join([OWN, *TEMPLATES])}"
        )
    set_template(tokenizer, None if template == OWN else template)
    return str(tokenizer.chat_template)


def begins_with_bos(tokenizer: PreTrainedTokenizerBase, add_bos: bool | None) -> bool:
    """Say whether plain prompts begin with the BOS token.

    Raises:
        UserError: if that is asked for, and the tokenizer does not do it.
    """
    ids = tokenizer.encode("a") if add_bos is None else tokenizer.encode("a", add_special_tokens=add_bos)
    found = tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
    if add_bos and not found:
        raise UserError(
            f"suite.add_bos=true: the tokenizer of '{tokenizer.name_or_path}' puts no BOS token before a text; set null"
        )
    return found


def hf_backend(model: Any, tokenizer: PreTrainedTokenizerBase, suite: SuiteConfig) -> Any:
    """Return lm-eval's view of a loaded transformers model; with several processes each answers its share."""
    from lm_eval.models.huggingface import HFLM

    state = PartialState()

    class SharedHFLM(HFLM):  # type: ignore[misc]
        """lm-eval shares requests among processes only for models that it loads itself."""

        @property
        def rank(self) -> int:
            return int(state.process_index)

        @property
        def world_size(self) -> int:
            return int(state.num_processes)

        def all_gather(self, tensor: Any) -> Any:
            return gather(tensor)

        def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
            import torch.distributed

            if state.num_processes == 1:
                return [obj]
            gathered = [None] * state.num_processes if state.process_index == dst else None
            torch.distributed.gather_object(obj, gathered, dst=dst)
            return gathered

        def barrier(self) -> None:
            state.wait_for_everyone()

    return SharedHFLM(
        pretrained=model.to(state.device) if not getattr(model, "is_quantized", False) else model,
        tokenizer=tokenizer,
        batch_size=suite.batch_size,
        max_length=suite.max_length,
        add_bos_token=suite.add_bos,
    )


def check_backend(suite: SuiteConfig, model: LoadedModelConfig, processes: int) -> None:
    """Refuse what the chosen back end cannot do.

    Raises:
        UserError: naming the key.
    """
    if model.chat_template is not None:
        raise UserError(f"model.chat_template={model.chat_template}: evaluation reads suite.chat_template; set that")
    if suite.backend != "vllm":
        return
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "suite.backend=vllm needs vLLM, which is not installed: pip install vllm; or set suite.backend=hf"
        )
    if processes > 1:
        raise UserError(
            "suite.backend=vllm starts processes itself; use launch=single and suite.vllm.tensor_parallel_size"
        )
    if model.gemma_numerics not in (None, "current"):
        raise UserError("suite.backend=vllm has a Gemma of its own: model.gemma_numerics is for suite.backend=hf")
    if model.quantization:
        raise UserError("suite.backend=vllm: model.quantization is for suite.backend=hf; set suite.vllm.quantization")
    if model.attn_implementation:
        raise UserError("suite.backend=vllm chooses its attention itself; leave model.attn_implementation out")


def vllm_backend(model: LoadedModelConfig, path: str, suite: SuiteConfig, template: str | None) -> Any:
    """Return lm-eval's vLLM model of a Hub id or a folder with whole weights; ``template`` is its chat template.

    Raises:
        UserError: for a folder that holds an adapter alone, or an ensemble.
    """
    from lm_eval.api.registry import get_model

    if is_ensemble(path):
        raise UserError(f"suite.backend=vllm: {path} is an ensemble, which vLLM cannot run; set suite.backend=hf")
    if (Path(path) / "adapter_config.json").is_file() and not (Path(path) / "config.json").is_file():
        raise UserError(f"suite.backend=vllm: {path} holds an adapter alone; merge it into its base first")
    arguments = {
        "pretrained": path,
        "tokenizer": model.tokenizer and model_path(model.tokenizer, "model.tokenizer"),
        "revision": model.revision,
        "dtype": model.dtype,
        "trust_remote_code": model.trust_remote_code,
        "add_bos_token": suite.add_bos,
        "max_model_len": suite.max_length,
        "batch_size": suite.batch_size,
        **suite.vllm,
    }
    backend = get_model("vllm")(**{name: value for name, value in arguments.items() if value is not None})
    if template is not None:
        backend.tokenizer.chat_template = template
    return backend
