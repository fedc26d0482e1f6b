"""The release's own command lines: how it reads them, and what they are in this package's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reproalign.common.errors import UserError

# Released key -> key here. None: says nothing here (logging, hub upload, unused by the release).
TRANSLATION: dict[str, str | None] = {
    "model_name_or_path": "model.name",
    "model_revision": "model.revision",
    "tokenizer_name_or_path": "model.tokenizer",
    "torch_dtype": "model.dtype",
    "trust_remote_code": "model.trust_remote_code",
    "chat_template": "model.chat_template",
    "use_peft": "model.lora.enabled",
    "lora_r": "model.lora.r",
    "lora_alpha": "model.lora.alpha",
    "lora_dropout": "model.lora.dropout",
    "lora_target_modules": "model.lora.target_modules",
    "lora_modules_to_save": "model.lora.modules_to_save",
    "preprocessing_num_workers": "data.num_proc",
    "max_length": "data.max_length",
    "max_prompt_length": "data.max_prompt_length",
    "beta": "loss.beta",
    "loss_type": "loss.type",
    "label_smoothing": "loss.label_smoothing",
    "bt_beta": "target.gamma",
    "soft_label_json": "target.soft_labels",
    "filter_threshold": "target.filter_threshold",
    "output_dir": "output_dir",
    "seed": "seed",
    "evaluation_strategy": "trainer.eval_strategy",
    "warmup_ratio": "trainer.warmup_steps",
    **dict.fromkeys(
        [
            *("base_model_revision", "model_code_revision", "text_column", "truncation_side", "hub_model_revision"),
            *("hub_model_id", "push_to_hub", "hub_strategy", "run_name", "logging_dir", "overwrite_output_dir"),
            *("resume_from_checkpoint", "save_start_steps", "remove_unused_columns", "do_train", "do_eval"),
        ]
    ),
}


# Types of the release's own fields; the others are transformers.TrainingArguments'.
KINDS = {
    **dict.fromkeys(["beta", "bt_beta", "label_smoothing", "filter_threshold", "lora_dropout"], "float"),
    **dict.fromkeys(["max_length", "max_prompt_length", "lora_r", "lora_alpha", "preprocessing_num_workers"], "int"),
    **dict.fromkeys(
        [
            *("trust_remote_code", "use_flash_attention_2", "use_peft", "load_in_8bit", "load_in_4bit"),
            *("use_bnb_nested_quant", "auto_insert_empty_system_msg"),
        ],
        "bool",
    ),
    **dict.fromkeys(["dataset_splits", "dataset_configs", "lora_target_modules", "lora_modules_to_save"], "list"),
    **dict.fromkeys(
        [
            *("model_name_or_path", "model_revision", "base_model_revision", "model_code_revision", "torch_dtype"),
            *("tokenizer_name_or_path", "bnb_4bit_quant_type", "chat_template", "text_column", "truncation_side"),
            *("hub_model_revision", "loss_type", "soft_label_json"),
        ],
        "str",
    ),
}


def released_kinds() -> dict[str, str]:
    """Return the type of every key of the release's command line, by name."""
    import dataclasses
    import typing

    from transformers import TrainingArguments

    hints = typing.get_type_hints(TrainingArguments)
    kinds = dict(KINDS)
    for field in dataclasses.fields(TrainingArguments):
        choices = [choice for choice in (hints[field.name], *typing.get_args(hints[field.name])) if choice in _SIMPLE]
        kinds.setdefault(field.name, _SIMPLE[choices[0]] if choices else "str")
    return kinds


_SIMPLE = {bool: "bool", float: "float", int: "int"}


def cast(text: str, kind: str) -> Any:
    """Turn the text of a flag into ``kind`` (int, float, bool, list of strings, or string) as the release does."""
    if kind == "int":
        return int(text)
    if kind == "float":
        return float(text)
    if kind == "bool":
        return text in ("true", "True")
    if kind == "list":
        return [str(part) for part in text.split(",")]
    return text


def apply_overrides(values: Mapping[str, Any], argv: Sequence[str], kinds: Mapping[str, str]) -> dict[str, Any]:
    """Apply ``--key=value`` flags to ``values`` as the release does.

    Leading dashes are stripped; the value is the text between the first and the second "="; a key that no dataclass
    has is ignored; the last of several counts.

    Args:
        values: from the YAML file.
        argv: the flags.
        kinds: the type of every known key, see :func:`released_kinds`.

    Raises:
        UserError: for a flag without "=" (the release dies with an IndexError).
    """
    result = dict(values)
    for flag in argv:
        parts = flag.split("=")
        if len(parts) < 2:
            raise UserError(f"'{flag}' is not of the form --key=value")
        key = parts[0].lstrip("-")
        if key in kinds:
            try:
                result[key] = cast(parts[1], kinds[key])
            except ValueError as error:
                raise UserError(f"'{flag}': {parts[1]!r} is no {kinds[key]}") from error
    return result


def translate(recipe: Path, argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Translate a released recipe and its flags.

    Args:
        recipe: a YAML recipe of the release.
        argv: ``--key=value`` flags that followed it.

    Returns:
        ``key=value`` words for ``mmpo train`` or ``mmpo reward``, and the released keys that have no meaning here.

    Raises:
        UserError: if the file cannot be read as a mapping.
    """
    import dataclasses

    import yaml
    from transformers import TrainingArguments

    try:
        values = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{recipe}: cannot be read as YAML ({error})") from error
    if not isinstance(values, dict):
        raise UserError(f"{recipe}: a mapping of keys to values is needed")
    for flag in argv:
        if "=" not in flag:
            raise UserError(f"'{flag}' is not of the form --key=value")
        key, value = flag.split("=")[:2]
        values[key.lstrip("-")] = yaml.safe_load(value)
    fields = {field.name for field in dataclasses.fields(TrainingArguments)}
    words, unknown = ["variant=released"], []
    mixer = values.pop("dataset_mixer", None)
    splits = values.pop("dataset_splits", None) or ["train", "test"]
    if mixer:
        words += _dataset_words(dict(mixer), splits)
    for key, value in values.items():
        name = TRANSLATION.get(key, f"trainer.{key}" if key in fields else None)
        if name is None:
            unknown += [key] if key not in TRANSLATION else []
        else:
            words.append(f"{name}={_word(value)}")
    return words, unknown


def _dataset_words(mixer: dict[str, float], splits: list[str]) -> list[str]:
    shp = any("shp" in name.lower() for name in mixer)
    words = [
        f"data={'shp' if shp else 'ultrafeedback'}",
        f"data.train_split={splits[0]}",
        f"data.eval_split={splits[-1]}",
    ]
    if len(mixer) == 1:
        ((name, fraction),) = mixer.items()
        return [*words, f"data.name={name}", f"data.fraction={fraction}"]
    return [*words, *(f'data.mix."{name}"={fraction}' for name, fraction in mixer.items())]


def _word(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ",".join(map(_word, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_word(entry)}" for key, entry in value.items()) + "}"
    return str(value)


def translate_command(argv: Sequence[str]) -> int:
    """``mmpo translate RECIPE.yaml [--key=value …]``: print the words, and on stderr what has no meaning here."""
    import shlex
    import sys

    if not argv or not argv[0].endswith(".yaml"):
        raise UserError("usage: mmpo translate RECIPE.yaml [--key=value …]")
    words, unknown = translate(Path(argv[0]), argv[1:])
    print(shlex.join(words))
    if unknown:
        print(f"without meaning here: {', '.join(unknown)}", file=sys.stderr)
    return 0
