"""Loading policies, reference policies, reward models and tokenizers from the configuration of a model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, overload

import torch
from accelerate import PartialState
from peft import PeftConfig, PeftModel, TaskType
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from reproalign.common.config.model import LoadedModelConfig, ModelConfig, ReferenceWeightsConfig
from reproalign.common.errors import UserError, choose, first_line
from reproalign.common.integrity import SMALL
from reproalign.common.models.adapters import Dropout, Model, adapter_folder, make_trainable
from reproalign.common.models.ensemble_file import ENSEMBLE, is_ensemble, read_ensemble
from reproalign.common.models.gemma import apply_gemma_numerics
from reproalign.common.models.quiet import quiet_transformers
from reproalign.common.records.handed_on import check_model

DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def model_path(name: str, key: str = "model.name", *, largest: int | None = SMALL) -> str:
    """Turn ``demo:…`` and ``tiny:…`` into a local folder; leave Hub ids and folders as they are.

    Args:
        name: what the user set.
        key: where; errors name it.
        largest: bytes above which a file of a folder is checked by its size alone; None: all are read, once a process.

    Raises:
        UserError: for an unknown ``demo:`` or ``tiny:`` name, a path that is not there, a folder that holds no model,
            or another one than was written.
    """
    kind, _, rest = name.partition(":")
    if kind == "demo":
        from reproalign.common.models.smollm2 import smollm2_folder

        choose("demo model", rest, ["smollm2-135m-instruct"])
        return str(smollm2_folder())
    if kind == "tiny":
        from reproalign.common.models.tiny import tiny_folder

        return str(tiny_folder(rest))
    folder = Path(name).expanduser()
    if folder.is_dir():
        check_model_folder(folder, key, largest=largest)
        return str(folder)
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:  # a Hub id is NAME or ORG/NAME
        raise UserError(f"{key}={name}: no such folder; give a model's folder, or its name on the Hub, ORG/NAME")
    return name


def unreadable(what: str, name: str, error: Exception) -> UserError:
    """Return the sentence on a model that could not be read, which says where it was looked for."""
    place = "" if ":" in name or Path(name).expanduser().is_dir() else " from the Hub (there is no such folder here)"
    return UserError(f"cannot load the {what} '{name}'{place}: {first_line(error)}")


def check_model_folder(folder: Path, key: str = "model.name", *, largest: int | None = SMALL) -> None:
    """Refuse, before heavy imports, a folder that ``from_pretrained`` could not read or that was changed since."""
    check_model(folder, key, largest=largest)
    names = ("config.json", "adapter_config.json", ENSEMBLE)
    config = next((folder / name for name in names if (folder / name).is_file()), None)
    if config is None:
        if (folder / "model").is_dir():
            raise UserError(f"{key}={folder} is the folder of a run; give its model, {folder / 'model'}")
        raise UserError(f"{key}={folder}: not a model folder (no config.json); give a folder saved by save_pretrained")
    try:
        json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{key}={folder}: {config.name} is not valid JSON ({error})") from error


def load_tokenizer(config: LoadedModelConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer of ``config`` (its own, or the model's; of an adapter saved without one, its base's)."""
    name = config.tokenizer or config.name
    path = model_path(name, "model.tokenizer" if config.tokenizer else "model.name")
    adapter = adapter_folder(path)
    if adapter and not (adapter / "tokenizer_config.json").is_file():
        base = str(PeftConfig.from_pretrained(str(adapter)).base_model_name_or_path)
        path = model_path(base, f"base_model_name_or_path of the adapter in {adapter}")
    try:
        return AutoTokenizer.from_pretrained(path, revision=config.revision, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise unreadable("tokenizer of", name, error) from error


@overload
def load_causal_lm(config: ModelConfig, *, name: str | None = None, dropout: Dropout = "all") -> Model: ...


@overload
def load_causal_lm(config: LoadedModelConfig, *, name: str | None = None, trainable: Literal[False]) -> Model: ...


def load_causal_lm(
    config: LoadedModelConfig, *, name: str | None = None, trainable: bool = True, dropout: Dropout = "all"
) -> Model:
    """Load a causal language model.

    Args:
        config: dtype, attention and quantisation are taken from it; of a trainable model, a :class:`ModelConfig`,
            adapters and dropout too.
        name: other weights than ``config.name`` (a reference policy).
        trainable: add the configured LoRA adapters; otherwise freeze everything.
        dropout: of a trainable model where ``config.dropout`` is null: ``all``, ``adapters`` (theirs alone) or ``none``
            (as TRL has it for DPO: policy and reference are compared on equal terms).

    Returns:
        The model in training mode, or frozen in eval mode.

    Raises:
        UserError: if the weights cannot be read.
    """
    folder = Path(model_path(name or config.name))
    if is_ensemble(folder) and not trainable:
        return _load_ensemble(config, folder)
    model = _load(AutoModelForCausalLM, config, name or config.name)
    if trainable:
        assert isinstance(config, ModelConfig)  # the overloads have it so
        return make_trainable(model, config, TaskType.CAUSAL_LM, dropout=dropout)
    return _frozen(model)


def reference_weights(model: LoadedModelConfig, reference: ReferenceWeightsConfig) -> tuple[str, str | None]:
    """Return name and revision of the reference: its own if it is another model, else the policy's start.

    Raises:
        UserError: for a folder of its own that holds no model.
    """
    if reference.model:
        model_path(reference.model, "reference.model")
        return reference.model, reference.revision
    return model.name, reference.revision or model.revision


def load_reference(model: LoadedModelConfig, reference: ReferenceWeightsConfig) -> Model:
    """Load the frozen reference policy, held as ``model`` is."""
    name, revision = reference_weights(model, reference)
    return load_causal_lm(replace(model, revision=revision), name=name, trainable=False)


def load_reward_model(config: LoadedModelConfig, tokenizer: PreTrainedTokenizerBase) -> Model:
    """Load a sequence classifier with one label: r(x, y) = w · h(last token), w ~ N(0, initializer_range²).

    The pad id is set from the tokenizer, since pooling finds the last token by it. By a :class:`ModelConfig` it is to
    be trained: with LoRA the task type is SEQ_CLS, so that the head is trained and saved with the adapter (the released
    code loses it, MMPO ERRATA Q18); dropout acts, unless ``config.dropout`` is false. Otherwise it is frozen.
    """
    model = _load(AutoModelForSequenceClassification, config, config.name, num_labels=1)
    model.config.pad_token_id = tokenizer.pad_token_id
    if isinstance(config, ModelConfig):
        return make_trainable(model, config, TaskType.SEQ_CLS, dropout="all")
    return _frozen(model)


def _frozen(model: PreTrainedModel) -> PreTrainedModel:
    model.requires_grad_(False)
    model.eval()
    return model


def merge_adapter(config: ModelConfig, tokenizer: PreTrainedTokenizerBase, adapter: Path) -> PreTrainedModel:
    """Load the unquantised weights of ``config`` on the CPU and add a saved adapter to them: W + (alpha / r) · B A.

    Reading from disk, instead of merging in the trained model, is right however that one is sharded or quantised, and
    leaves it as it is.
    """
    plain = replace(config, quantization=None, lora=replace(config.lora, enabled=False))
    if PeftConfig.from_pretrained(str(adapter)).task_type == TaskType.SEQ_CLS:
        base = load_reward_model(plain, tokenizer)
    else:
        base = load_causal_lm(plain)
    merged: PreTrainedModel = PeftModel.from_pretrained(base, adapter).merge_and_unload()  # type: ignore[arg-type]
    return merged


def _load(auto: Any, config: LoadedModelConfig, name: str, **extra: Any) -> PreTrainedModel:
    quiet_transformers()
    options: dict[str, Any] = {
        "dtype": DTYPES[config.dtype],
        "revision": config.revision,
        "trust_remote_code": config.trust_remote_code,
        **extra,
    }
    if config.attn_implementation:
        options["attn_implementation"] = config.attn_implementation
    if config.quantization:
        options["quantization_config"] = _quantization(config)
        options["device_map"] = {"": torch.accelerator.current_device_index()}
    if is_ensemble(model_path(name)):
        raise UserError(
            f"{name} is an ensemble of several models' logits, which is no model to train, merge or score with; give "
            "one of its members, or merge them"
        )
    whole = None if PartialState().is_local_main_process else SMALL  # the others read the very same files
    path = model_path(name, largest=whole)
    adapter = adapter_folder(path)
    if adapter:
        if config.quantization:
            raise UserError(f"{name} holds an adapter, which cannot be merged into quantised weights; merge it first")
        base = PeftConfig.from_pretrained(str(adapter)).base_model_name_or_path
        adapted = PeftModel.from_pretrained(_load(auto, config, str(base), **extra), adapter)  # type: ignore[arg-type]
        merged: PreTrainedModel = adapted.merge_and_unload()
        merged.name_or_path = str(adapter)  # PEFT names it as the base of a further adapter, which these weights are
        return merged.requires_grad_(True)  # PEFT froze it
    try:
        model: PreTrainedModel = auto.from_pretrained(path, **options)
    except UserError:
        raise
    except Exception as error:  # safetensors, OS, JSON and config errors all mean the same to the user
        raise unreadable("model", name, error) from error
    apply_gemma_numerics(model, config.gemma_numerics, name)
    return model


def _load_ensemble(config: LoadedModelConfig, folder: Path) -> PreTrainedModel:
    from reproalign.common.models.ensemble import load_ensemble

    if config.quantization:
        raise UserError(f"model.quantization={config.quantization}: an ensemble is not quantised; remove it")
    return load_ensemble(read_ensemble(folder), folder, lambda name: _load(AutoModelForCausalLM, config, name))


def _quantization(config: LoadedModelConfig) -> BitsAndBytesConfig:
    if not torch.accelerator.is_available():
        raise UserError(f"model.quantization={config.quantization} needs a GPU; this machine has none")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"model.quantization={config.quantization} needs bitsandbytes: pip install 'reproalign-common[qlora]'"
        ) from error
    if config.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = DTYPES[config.dtype] if config.dtype != "auto" else torch.bfloat16
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)
