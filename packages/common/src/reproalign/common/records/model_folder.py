"""What a model's folder holds and how it is loaded, in the words of its card."""

from __future__ import annotations

import json
from pathlib import Path


class ModelFolder:
    """What a model's folder holds, read off its files.

    Attributes:
        adapter: a low-rank adapter, without its base.
        ensemble: of several models.
        reward: a reward model.
        architecture: its class in transformers; empty if its configuration is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.adapter = (folder / "adapter_config.json").is_file()
        self.ensemble = (folder / "ensemble.json").is_file()
        self.reward = (folder / "reward.json").is_file()
        config = folder / "config.json"
        names = json.loads(config.read_text(encoding="utf-8")).get("architectures") if config.is_file() else None
        self.architecture = (names or [""])[0]
        self.reward = self.reward or self.architecture.endswith("ForSequenceClassification")

    def __str__(self) -> str:
        what = "reward model" if self.reward else "ensemble of language models" if self.ensemble else "language model"
        held = "A low-rank adapter of a " if self.adapter else "An " if self.ensemble else "A "
        return f"{held}{what}" + (f" (`{self.architecture}`)" if self.architecture else "")

    def usage(self, name: str, base: str | None) -> str:
        """Return how to load the model, in Markdown.

        Args:
            name: what to load it by: a folder, or its name on the Hub.
            base: Hub model that it began at, if known.
        """
        if self.ensemble:
            return f"An ensemble is read by reproalign: `reproalign evaluate suite=dtm model.name={name}`."
        task = "SequenceClassification" if self.reward else "CausalLM"
        loader = f"AutoPeftModelFor{task}" if self.adapter else f"AutoModelFor{task}"
        one = f"from peft import {loader}\nfrom transformers import AutoTokenizer"
        imports = one if self.adapter else f"from transformers import {loader}, AutoTokenizer"
        program = (
            f'{imports}\n\nmodel = {loader}.from_pretrained("{name}")\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{name}")'
        )
        notes = []
        if self.adapter and base is None:
            notes.append("`adapter_config.json` names the base as it was on the machine of training.")
        if self.reward:
            notes.append(
                "`reward.json` says how a dialogue becomes the text that it reads (turn marks, special tokens, length, "
                f"pooling); `more-rm score model.name={name} responses=FILE` follows it."
            )
        return "\n\n".join([f"```python\n{program}\n```", *notes])
