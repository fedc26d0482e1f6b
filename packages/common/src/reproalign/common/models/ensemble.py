"""A logit ensemble as one causal language model: z = Σ_j α_j z_j at every decoding step (arXiv 2405.13432).

Adapters of one base share it: the base is held once, with one PEFT adapter for each member, which are switched from
forward to forward. Other members are held each by itself. The configuration counts the layers of all members, so that
the key-value cache that ``generate`` makes has room for every member's, and each member gets its own part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from reproalign.common.errors import UserError
from reproalign.common.models.adapters import adapter_folder
from reproalign.common.models.ensemble_file import EnsembleSpec

Load = Callable[[str], PreTrainedModel]


class EnsembleForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """The weighted mean of several models' logits; frozen.

    Attributes:
        weights: α_j.
        members: the models; one that holds all adapters, if adapters share a base.
        adapters: names of the adapters, one for each weight; empty if members are models of their own.
    """

    def __init__(self, members: Sequence[PreTrainedModel | PeftModel], weights: Sequence[float], *, name: str) -> None:
        """Put members together.

        Args:
            members: causal language models; or one PEFT model with an adapter for each weight.
            weights: α_j.
            name: what the ensemble is called.

        Raises:
            UserError: if the members are of different architectures, or their logits of different widths.
        """
        configs = [member.config for member in members]
        adapters = list(members[0].peft_config) if isinstance(members[0], PeftModel) else []
        _check_alike(members, name)
        super().__init__(_joint_config(configs * (len(adapters) or 1), name))
        self.weights = tuple(weights)
        self.members = nn.ModuleList(members)
        self.adapters = tuple(adapters)
        self.layers = [config.get_text_config().num_hidden_layers for config in configs * (len(adapters) or 1)]
        self.requires_grad_(False)
        nn.Module.eval(self)

    def forward(
        self,
        input_ids: Int[Tensor, "batch seq"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Int[Tensor, "batch seq"] | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Run every member and sum its logits, in float32 or better."""
        cached = use_cache if use_cache is not None else past_key_values is not None
        if cached and (past_key_values is None or len(past_key_values.layers) < sum(self.layers)):
            past_key_values = DynamicCache(config=self.config)
        total: Tensor | None = None
        first = 0
        for member, weight, layers in zip(self._each(), self.weights, self.layers, strict=True):
            part = Cache(layers=past_key_values.layers[first : first + layers]) if cached and past_key_values else None
            logits = member(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=part,
                use_cache=cached,
                logits_to_keep=logits_to_keep,
                **kwargs,
            ).logits
            wide = logits if logits.dtype == torch.float64 else logits.float()
            total = wide * weight if total is None else total.add_(wide, alpha=weight)
            first += layers
        assert total is not None
        measure: Any = self.loss_function
        loss = None if labels is None else measure(total, labels, vocab_size=total.shape[-1])
        return CausalLMOutputWithPast(loss=loss, logits=total, past_key_values=past_key_values if cached else None)

    def _each(self) -> Iterator[Any]:
        if not self.adapters:
            yield from self.members
            return
        adapted: Any = self.members[0]
        for name in self.adapters:
            adapted.set_adapter(name, inference_mode=True)
            yield adapted

    def get_input_embeddings(self) -> nn.Module:
        """Return those of the first member."""
        first: Any = self.members[0]
        embeddings: nn.Module = first.get_input_embeddings()
        return embeddings

    def get_output_embeddings(self) -> None:
        """Return None: no single head makes these logits."""

    def tie_weights(self, *_: Any, **__: Any) -> None:
        """Do nothing; each member's weights were tied when it was loaded."""


def load_ensemble(spec: EnsembleSpec, folder: Path, load: Load) -> EnsembleForCausalLM:
    """Load the members of an ensemble.

    Args:
        spec: see :func:`~.ensemble_file.read_ensemble`.
        folder: of the ensemble.
        load: loads one causal language model by its name; adapters come folded in.

    Raises:
        UserError: if the members do not belong together.
    """
    folders = [adapter_folder(str(Path(name).expanduser())) for name in spec.members]
    adapters = [entry for entry in folders if entry is not None]
    named = {str(PeftConfig.from_pretrained(str(entry)).base_model_name_or_path) for entry in adapters}
    bases = {spec.base} if spec.base else named
    if len(adapters) == len(spec.members) and len(bases) == 1:
        base: Any = load(next(iter(bases)))
        adapted = PeftModel.from_pretrained(base, adapters[0], adapter_name="member-0")
        for index, entry in enumerate(adapters[1:], 1):
            adapted.load_adapter(str(entry), f"member-{index}")
        model = EnsembleForCausalLM([adapted], spec.weights, name=str(folder))
    else:
        model = EnsembleForCausalLM([load(name) for name in spec.members], spec.weights, name=str(folder))
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def _joint_config(configs: Sequence[PretrainedConfig], name: str) -> PretrainedConfig:
    """Return the first configuration with the layers of all: what caches are made from."""
    # Not a copy: the members' way of attention is theirs alone.
    joint = type(configs[0]).from_dict(configs[0].to_dict())
    text = joint.get_text_config()
    texts = [config.get_text_config() for config in configs]
    kinds = [getattr(config, "layer_types", None) for config in texts]
    text.num_hidden_layers = sum(config.num_hidden_layers for config in texts)
    if all(kind is not None for kind in kinds):
        text.layer_types = [layer for kind in kinds for layer in kind or ()]
    joint.name_or_path = name
    return joint


def _check_alike(members: Sequence[Any], name: str) -> None:
    kinds = {member.config.model_type for member in members}
    widths = {member.get_output_embeddings().weight.shape[0] for member in members}
    if len(kinds) > 1:
        raise UserError(f"{name}: an ensemble of {' and '.join(sorted(kinds))}; members must be of one architecture")
    if len(widths) > 1:
        raise UserError(
            f"{name}: the members' vocabularies have {' and '.join(map(str, sorted(widths)))} rows; logits of "
            "different vocabularies cannot be averaged"
        )
