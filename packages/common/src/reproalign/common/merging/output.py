"""What is written beside the merged weights, and whether the result is a model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import AutoTokenizer

from reproalign.common.errors import UserError, first_line
from reproalign.common.files import write_json
from reproalign.common.merging.blocks import auto_class, meta_model
from reproalign.common.merging.headers import read_json
from reproalign.common.merging.planning import MergePlan
from reproalign.common.merging.settings import METHODS

COPIED = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "chat_template*",
    "additional_chat_templates",
    "generation_config.json",
)
LOADED_BELOW = 4_000_000_000  # bytes of a model that verify=auto loads


def write_files(folder: Path, template: Path, config: dict[str, Any], plan: MergePlan) -> None:
    """Copy tokenizer, chat template and generation files, and the configuration but for what the merge changed.

    Args:
        folder: of the merged model.
        template: whose files are copied.
        config: ``config.json`` of the first model, which counts if the template is an adapter and has none.
        plan: of the merge.
    """
    config = read_json(template / "config.json") if (template / "config.json").is_file() else dict(config)
    if plan.settings.dtype != "auto":
        config.pop("torch_dtype", None)
        config["dtype"] = plan.settings.dtype
    if plan.agreement.vocabulary is not None:
        text = config.get("text_config")
        (text if isinstance(text, dict) else config)["vocab_size"] = plan.agreement.vocabulary
    if plan.settings.tied == "untie":
        config["tie_word_embeddings"] = False
    write_json(folder / "config.json", config)
    copy_files(template, folder)


def copy_files(template: Path, folder: Path) -> None:
    """Copy tokenizer, chat template and generation files."""
    for pattern in COPIED:
        for path in sorted(template.glob(pattern)):
            if path.is_dir():
                shutil.copytree(path, folder / path.name, dirs_exist_ok=True)
            elif path.suffix not in (".safetensors", ".bin"):
                shutil.copyfile(path, folder / path.name)


def made_by(method: str) -> str:
    """Say how ``reproalign merge`` made a result, for its card."""
    return f"`reproalign merge` with `method={method}` ({METHODS[method].source})"


def verify(folder: Path, plan: MergePlan, how: str) -> str:
    """Open the result as a reader would, and say what was checked.

    Every tensor must be where the index says, of the dtype and shape that was planned; the architecture must find all
    that it names (a tied head aside). With ``load`` the model and the tokenizer are loaded on the CPU.

    Raises:
        UserError: if the models themselves lack a tensor.
        RuntimeError: if the result is not what was planned; nothing is then handed over.
    """
    found: dict[str, tuple[tuple[int, ...], str]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as stream:
            for name in stream.keys():  # noqa: SIM118 - not a mapping
                part = stream.get_slice(name)
                found[name] = (tuple(part.get_shape()), str(part.get_dtype()))
    from reproalign.common.merging.headers import DTYPE_NAMES

    planned = {name: (job.output.shape, DTYPE_NAMES[job.output.dtype]) for name, job in plan.jobs.items()}
    if found != planned:
        raise RuntimeError(f"the files hold {len(found)} tensors that are not the {len(planned)} planned ones")
    config = read_json(folder / "config.json")
    if how == "headers" or (how == "auto" and plan.output_bytes > LOADED_BELOW):
        model = meta_model(config, "the merged model")
        shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        wrong = [name for name, (shape, _) in found.items() if shapes.get(name, shape) != shape]
        if wrong:
            raise RuntimeError(f"'{wrong[0]}' does not have the shape of the architecture: {shapes[wrong[0]]}")
        return "headers and shapes"
    try:
        _, report = auto_class(config).from_pretrained(folder, dtype="auto", output_loading_info=True)
        if (folder / "tokenizer_config.json").is_file():
            AutoTokenizer.from_pretrained(folder)
    except Exception as error:
        raise RuntimeError(f"the merged model cannot be loaded: {first_line(error)}") from error
    if report["missing_keys"]:
        lacking = min(report["missing_keys"])
        raise UserError(f"the files of the models hold no tensor '{lacking}', which models of their kind need")
    if report["mismatched_keys"]:
        raise RuntimeError(f"the merged model loads with mismatched keys {sorted(map(str, report['mismatched_keys']))}")
    return "loaded"
