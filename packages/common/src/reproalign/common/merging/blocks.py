"""Which block of the network a tensor belongs to, for any decoder-only family in transformers.

The model is built on the meta device from its configuration (nothing is loaded) and its structure is read: the
embeddings and the head through ``get_input_embeddings`` and ``get_output_embeddings``, the layers as the list of
modules that is as long as the configuration says, attention and norms by what their classes are.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers.conversion_mapping import WeightRenaming, get_model_conversion_mapping

from reproalign.common.errors import UserError, first_line

KINDS = ("embedding", "attention", "mlp", "norm", "head", "other")
EXPERT = re.compile(r"\.experts\.\d+\.|_moe\.")  # stacked and renamed when a model is loaded
LAYERS = re.compile(r"layers\.(\d+)(?:-(\d+))?(?:\.(attention|mlp|norm|other))?")


@dataclass(frozen=True)
class Block:
    """Part of a network.

    Attributes:
        kind: one of :data:`KINDS`. A norm inside attention (Qwen 3, OLMo 2) is a norm; a state-space or linear mixer
            stands where attention does and is called so; ``other`` is what a layer or model holds besides.
        layer: index of the layer, from 0; None outside the layers.
    """

    kind: str
    layer: int | None = None

    def __str__(self) -> str:
        return self.kind if self.layer is None else f"layers.{self.layer}.{self.kind}"


class Blocks:
    """The blocks of one architecture.

    Attributes:
        model: the network without weights.
        layers: number of layers.
        input_embedding: name of the module that embeds tokens.
        head: name of the module that gives the output, or None.
    """

    def __init__(self, config: dict[str, Any], label: str) -> None:
        """Build the network on the meta device.

        Args:
            config: ``config.json`` as plain values.
            label: what messages call the model.

        Raises:
            UserError: if transformers knows no such language model or classifier.
        """
        self.model = meta_model(config, label)
        self.layers, self._layers_name = _layers(self.model, label)
        names = {module: name for name, module in self.model.named_modules()}
        self.input_embedding = names[self.model.get_input_embeddings()]
        self.head = self._head(names)
        self._places = self.model.state_dict().keys()
        # Files keep names that the loader changes, such as GPT-NeoX's embed_out for the head.
        self._renamings = [
            step
            for step in get_model_conversion_mapping(self.model, add_legacy=False)
            if isinstance(step, WeightRenaming)
        ]
        self._kinds = {name: _kind(module) for name, module in self.model.named_modules()}

    def block(self, tensor: str) -> Block:
        """Return the block of a tensor by its name in a checkpoint."""
        path = self._path(tensor)
        prefix = f"{self._layers_name}."
        if path.startswith(prefix):
            index, _, inside = path.removeprefix(prefix).partition(".")
            return Block(self._kind_inside(f"{prefix}{index}", inside), int(index))
        owner = path.rpartition(".")[0]
        if self.head and (owner == self.head or owner.startswith(f"{self.head}.")):
            return Block("head")
        # Modules between the root and the tensor: the innermost that says something decides.
        for name in _ancestors(owner):
            kind = self._kinds.get(name)
            if kind in ("embedding", "norm"):
                return Block(kind)
        return Block("other")

    def owner(self, tensor: str) -> str | None:
        """Name the module of the model that holds a tensor; None where checkpoints are laid out otherwise (experts)."""
        name = self._path(tensor).rpartition(".")[0]
        return name if name in self._kinds else None

    @property
    def tied(self) -> bool:
        """The head is the input embedding."""
        return bool(self.model.config.get_text_config().tie_word_embeddings)

    def needs(self, tensor: str) -> bool:
        """Say whether the architecture has a place for a tensor, by its own name or that of an older file."""
        return self._path(tensor) in self._places or EXPERT.search(tensor) is not None

    def _kind_inside(self, layer: str, inside: str) -> str:
        owner = inside.rpartition(".")[0]
        kinds = [self._kinds.get(f"{layer}.{name}") for name in _ancestors(owner)]
        if "norm" in kinds:
            return "norm"
        if "attention" in kinds:
            return "attention"
        return "mlp" if owner else "other"

    def _path(self, tensor: str) -> str:
        """Return the tensor's place in the model; checkpoints of the bare model lack the prefix of the whole."""
        if tensor not in self._places:
            for step in self._renamings:
                tensor, _ = step.rename_source_key(tensor)
        prefix = self.model.base_model_prefix
        root = tensor.partition(".")[0]
        if prefix and root != prefix and not hasattr(self.model, root) and hasattr(self.model, prefix):
            return f"{prefix}.{tensor}"
        return tensor

    def _head(self, names: dict[nn.Module, str]) -> str | None:
        output = self.model.get_output_embeddings()
        if output is not None:
            return names[output]
        inner = getattr(self.model, self.model.base_model_prefix, None)
        # A classifier's head is what it has besides the network it shares with language models.
        outside = [name for name, child in self.model.named_children() if child is not inner]
        return outside[0] if len(outside) == 1 else None


def auto_class(config: dict[str, Any]) -> Any:
    """Return transformers' auto class for the architecture that a ``config.json`` names, or None."""
    architecture = (config.get("architectures") or [""])[0]
    if "ForSequenceClassification" in architecture:
        return AutoModelForSequenceClassification
    return AutoModelForCausalLM if architecture.endswith(("ForCausalLM", "LMHeadModel")) else None


def meta_model(config: dict[str, Any], label: str) -> PreTrainedModel:
    """Build the architecture that a ``config.json`` names, without weights.

    Raises:
        UserError: if it names none that transformers knows, or one that is neither language model nor classifier.
    """
    auto = auto_class(config)
    if auto is None:
        raise UserError(
            f"'{label}': the architecture '{(config.get('architectures') or ['none'])[0]}' is neither a causal "
            "language model nor a sequence classifier"
        )
    try:
        parsed = AutoConfig.for_model(**config)
        with torch.device("meta"):
            model: PreTrainedModel = auto.from_config(parsed)
    except Exception as error:  # configuration classes raise all kinds of errors for values they cannot use
        raise UserError(
            f"'{label}': transformers cannot build the model of its config.json: {first_line(error)}"
        ) from error
    return model


def matches(selector: str, tensor: str, block: Block) -> bool:
    """Say whether a tensor is meant by a selector.

    Selectors: a kind (``embedding``, ``attention``, ``mlp``, ``norm``, ``head``, ``other``; inside layers or not),
    ``layers.3``, ``layers.0-7`` (both ends included), these with a kind (``layers.0-7.mlp``), or with a ``*`` a glob on
    the tensor's name (``*.q_proj.*``).
    """
    if "*" in selector:
        return fnmatchcase(tensor, selector)
    if selector in KINDS:
        return block.kind == selector
    found = LAYERS.fullmatch(selector)
    if found is None or block.layer is None:
        return False
    first, last, kind = found.groups()
    return int(first) <= block.layer <= int(last or first) and kind in (None, block.kind)


def check_selector(selector: str, layers: int, tensors: Iterable[tuple[str, Block]]) -> None:
    """Refuse a selector that is none, or means nothing in this model.

    Raises:
        UserError: naming it.
    """
    found = LAYERS.fullmatch(selector)
    if "*" not in selector and selector not in KINDS and found is None:
        raise UserError(
            f"parts: '{selector}' is no block; write {', '.join(KINDS)}, layers.3, layers.0-7, layers.0-7.mlp, or a "
            "pattern with * on tensor names"
        )
    if found and int(found[2] or found[1]) >= layers:
        raise UserError(f"parts: '{selector}' goes beyond the {layers} layers (0 to {layers - 1}) of the model")
    if not any(matches(selector, name, block) for name, block in tensors):
        raise UserError(f"parts: '{selector}' matches no tensor of the model")


def _layers(model: PreTrainedModel, label: str) -> tuple[int, str]:
    count = model.config.get_text_config().num_hidden_layers
    lists = [
        name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not lists:
        raise UserError(f"'{label}': no list of {count} layers in its architecture; it is no decoder-only model")
    # Nested lists (experts) may have the same length; the layers are the outermost.
    return count, min(lists, key=lambda name: name.count("."))


def _ancestors(name: str) -> list[str]:
    """Name a module and those it lies in, innermost first: ``a.b`` gives ``a.b``, ``a``."""
    parts = name.split(".") if name else []
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]


def _kind(module: nn.Module) -> str | None:
    name = type(module).__name__.lower()
    if isinstance(module, nn.Embedding):
        return "embedding"
    if "norm" in name:
        return "norm"
    takes = inspect.signature(module.forward).parameters
    # Layers take a mask as well and hold attention and MLP; only what holds no norm before it is the mixer itself.
    mixes = "attention" in name or "attn" in name or "mixer" in name
    return "attention" if mixes and ("hidden_states" in takes or "attention_mask" in takes) else None
