"""The release's own command lines: how it reads them, and what they are in this package's words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from reproalign.common.errors import UserError

# Released key -> key here. None: says nothing here (logging, hub upload, unused by the release). Keys that are neither
# here nor in TrainingArguments are named by ``translate``, e.g. ``chat_template`` (Jinja text there, a file here) and
# ``filter_threshold`` (the release never filters, ERRATA Q9).
TRANSLATION: dict[str, str | None] = {
    "model_name_or_path": "model.name",
    "model_revision": "model.revision",
    "tokenizer_name_or_path": "model.tokenizer",
    "torch_dtype": "model.dtype",
    "trust_remote_code": "model.trust_remote_code",
    "use_peft": "model.lora.enabled",
    "lora_r": "model.lora.r",
    "lora_alpha": "model.lora.alpha",
    "lora_dropout": "model.lora.dropout",
    "lora_target_modules": "model.lora.target_modules",
    "lora_modules_to_save": "model.lora.modules_to_save",
    "preprocessing_num_workers": "data.num_proc",
    "max_length": "text.max_length",
    "max_prompt_length": "text.max_prompt_length",
    "beta": "loss.beta",
    "loss_type": "loss",
    "label_smoothing": "loss.label_smoothing",
    "bt_beta": "target.gamma",
    "soft_label_json": "target.soft_labels",
    "output_dir": "output_dir",
    "seed": "seed",
    "evaluation_strategy": "trainer.eval_strategy",
    "warmup_ratio": "trainer.warmup_steps",
    **dict.fromkeys(
        [
            *("base_model_revision", "model_code_revision", "text_column", "truncation_side", "hub_model_revision"),
            *("hub_model_id", "push_to_hub", "hub_strategy", "run_name", "logging_dir", "overwrite_output_dir"),
            *("resume_from_checkpoint", "remove_unused_columns", "do_train", "do_eval"),
        ]
    ),
}

# Released switch -> the word that switching it on comes to.
SWITCHES = {
    "use_flash_attention_2": "model.attn_implementation=flash_attention_2",
    "load_in_4bit": "model.quantization=4bit",
    "load_in_8bit": "model.quantization=8bit",
}

# A recipe with one of these keys is a policy's, else a reward model's.
POLICY_KEYS = {"beta", "loss_type", "max_prompt_length"}
# What the policies' scripts take where a recipe says nothing.
POLICY_DEFAULTS = {"beta": 0.1, "max_length": 512, "max_prompt_length": 128, "optim": "rmsprop"}

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
    others = {flag.partition("=")[0].lstrip("-"): "str" for flag in argv}
    values = apply_overrides(values, argv, {**others, **released_kinds()})
    values.setdefault("bt_beta", None)  # hard labels, which the key here has no default for
    fields = {field.name for field in dataclasses.fields(TrainingArguments)}
    words, unknown = ["variant=released", "text.special_tokens=released"], []
    mixer = values.pop("dataset_mixer", None) or {}
    if not isinstance(mixer, dict):
        raise UserError(f"{recipe}: dataset_mixer must be a mapping of data sets to fractions")
    shp = any("shp" in name.lower() for name in mixer)
    splits = values.pop("dataset_splits", None) or ["train", "test"]
    if mixer:
        words = [*_dataset_words(mixer, splits, "shp" if shp else "ultrafeedback"), *words]
    if values.keys() & POLICY_KEYS:  # the scripts' own rules, which no key says
        given = {key: value for key, value in values.items() if value is not None}
        values = {**values, **POLICY_DEFAULTS, **given}
        words += ["text.boundary=released", "pairs.cap_per_prompt=5" if shp else "pairs.decontaminate=humaneval"]
    else:
        words += ["text.overlong=drop", "trainer.save_total_limit=null"]
        values.pop("use_flash_attention_2", None)  # asked for, and not passed on by the script (ERRATA Q19)
    words.append("pairs.shuffle_seed=42")
    if values.get("bf16") and values.get("torch_dtype") in ("bfloat16", "float16"):
        # What the release's ZeRO-3 runs hold; its plain data-parallel runs have no masters (ERRATA Q38).
        values["torch_dtype"] = "float32"
    if not values.get("use_peft"):  # which alone turns them on, there as here
        values = {key: value for key, value in values.items() if not key.startswith("lora_")}
    for key, value in values.items():
        name = TRANSLATION.get(key, f"trainer.{key}" if key in fields else None)
        if key in SWITCHES:
            words += [SWITCHES[key]] if value else []
        elif name is None:
            unknown += [key] if key not in TRANSLATION and (value is not None or key not in KINDS) else []
        elif value is not None or name == "target.gamma":  # null: the default, there as here
            words.append(f"{name}={_word(value)}")
    return words, unknown


def _dataset_words(mixer: dict[str, Any], splits: list[str], source: str) -> list[str]:
    """Return the words for the data sets of a mixture; one of them alone takes the place of the group's own."""
    train = [split for split in splits if "train" in split]
    test = [split for split in splits if "train" not in split]
    if len(train) != 1 or len(test) > 1:
        raise UserError(
            f"dataset_splits={','.join(splits)}: one training split and at most one other can be translated"
        )
    alone = len(mixer) == 1
    words = [f"data={source if alone else 'own'}"]
    for number, (name, fraction) in enumerate(mixer.items(), start=1):
        key = f"data.sets.{source if alone else f'set{number}'}"
        words += [f"{key}.source={source}", f"{key}.name={_word(name)}", f"{key}.fraction={fraction}"]
        words += [f"{key}.split={_word(train[0])}", f"{key}.eval_split={_word(test[0] if test else None)}"]
    return words


def _word(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ",".join(map(_word, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_word(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, str) and not re.fullmatch(r"[\w./-]+", value):
        return QuotedString(value.replace("${", "\\${"), Quote.double).with_quotes()
    return str(value)


def translate_command(argv: Sequence[str]) -> int:
    """``mmpo translate RECIPE.yaml [--key=value …]``: print the words, and on stderr what has no meaning here."""
    import shlex
    import sys

    usage = "usage: mmpo translate RECIPE.yaml [--key=value …]"
    if "--help" in argv:
        print(usage)
        return 0
    if not argv or not argv[0].endswith(".yaml"):
        raise UserError(usage)
    words, unknown = translate(Path(argv[0]), argv[1:])
    print(shlex.join(words))
    if unknown:
        print(f"without meaning here: {', '.join(unknown)}", file=sys.stderr)
    return 0
