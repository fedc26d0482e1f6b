"""The two weights of every tensor of an average, from a plan and the opened models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from reproalign.ama.average.names import LegacyName
from reproalign.ama.average.plan import AveragePlan
from reproalign.ama.inputs import identity
from reproalign.ama.parts import Parts, make_parts
from reproalign.ama.ratios_file import Ratios
from reproalign.ama.tensors import TensorRule, tensor_rule
from reproalign.common.merging.blocks import Blocks
from reproalign.common.merging.inputs import Model
from reproalign.common.merging.values import PerTensor
from reproalign.common.records.fingerprints import identity_of


@dataclass(frozen=True)
class Averaged:
    """An average of two opened models, one ratio for all tensors (R1) or one for each part (R2).

    Attributes:
        plan: of it.
        parts: of the models.
        ratios: of the groups, on pre.
        rule: from a tensor to its ratio.
        ratio: the same as a function.
        dtype: of a tensor of the output.
    """

    plan: AveragePlan
    parts: Parts
    ratios: dict[str, float]
    rule: TensorRule
    ratio: Callable[[str], float]
    dtype: Callable[[str], torch.dtype]

    @property
    def means(self) -> tuple[float, float]:
        """Means of the ratios over groups and over layers."""
        return self.parts.means(list(self.ratios.values()))

    @property
    def weights(self) -> tuple[PerTensor, PerTensor]:
        """Weights of pre and post for the core's merge: the ratio a and 1 - a of every tensor (R1), (R2)."""
        learned = self.plan.file is not None and self.plan.variant.rounds_steps

        def pair(tensor: str) -> tuple[float, float]:
            ratio = self.ratio(tensor)
            if not learned:
                return ratio, 1 - ratio
            return scalar_weights(torch.tensor(ratio, dtype=torch.float32), self.dtype(tensor))

        def of(model: int) -> Callable[[str], float]:
            return lambda tensor: pair(tensor)[model]

        label = ", ".join(f"{name}: {value}" for name, value in self.facts.items() if name in SHOWN)
        return PerTensor(f"on pre: {label}", of(0)), PerTensor("on post: the rest to 1", of(1))

    @property
    def facts(self) -> dict[str, Any]:
        """What the record says of it."""
        mean, layer_weighted = self.means
        return {
            "parts": self.parts.level,
            "ratios": self.ratios,
            "base": self.plan.base,
            "tensors": self.rule.name,
            "head": self.rule.head,
            "alpha_on": "pre",
            "layers": dict(zip(self.parts.names, self.parts.layer_shares, strict=True)),
            "mean": mean,
            "layer_weighted_mean": layer_weighted,
        }

    def other_rule(self) -> list[str]:
        """Return a note if learned ratios are used under another tensor rule than they were found under."""
        file = self.plan.file
        if file is None or file.tensors in (None, self.plan.tensors):
            return []
        return [f"the ratios were found under tensors={file.tensors} and are used under {self.plan.tensors}"]

    def other_weights(self, digests: Mapping[str, Mapping[str, str]]) -> list[str]:
        """Return notes on learned ratios that are used on other weights than they were found for.

        Args:
            digests: by model, the SHA-256 of its files by their names, which are not read again. Others are, if the
                file of ratios says what they were found for, as those of ``ama adapt`` do.
        """
        file = self.plan.file
        notes = []
        for key, known in (("pre", file.pre), ("post", file.post)) if file else ():
            name = str(getattr(self.plan.config, key))
            if identity_of(known) and identity(name, digests) != identity_of(known):
                notes.append(
                    f"the ratios were found for other weights of {key} ({known.get('name', 'unnamed')}) than those of "
                    f"{name}, on which they are used"
                )
        return notes

    def as_ratios(self) -> Ratios:
        """Return the average as ``ratios.json`` holds it; the identities stay those that the ratios were found for."""
        config, file = self.plan.config, self.plan.file
        found = dict(file.found) if file else {"by": "ama average"}
        return Ratios(
            self.parts.level,
            self.ratios,
            self.plan.base,
            self.means,
            epsilon=file.epsilon if file else None,
            tensors=self.rule.name,
            head=self.rule.head,
            variant=config.variant,
            found=found,
            pre=(file and file.pre) or {"name": config.pre},
            post=(file and file.post) or {"name": str(config.post)},
        )


SHOWN = ("parts", "ratios", "base", "tensors", "head")


def averaged(plan: AveragePlan, model: Model) -> Averaged:
    """Fit a plan to a model.

    Args:
        plan: of the average.
        model: before RLHF, opened; the other one is like it.

    Raises:
        UserError: if the model does not have the parts.
    """
    config, name = plan.config, plan.name
    blocks = Blocks(model.config, model.label)
    parts = make_parts(plan.level, blocks) if name is None else named_parts(name, blocks.layers)
    ratios = plan.group_ratios(parts) if name is None else named_ratios(name, plan.base, parts)
    head = "post" if plan.only is not None and plan.head is None else plan.head
    untied = config.tied == "untie"
    learned = plan.variant.learned_head
    rule = tensor_rule(plan.tensors, head, parts, blocks, learned_head=learned, untied=untied)

    def ratio(tensor: str) -> float:
        if name is None:
            return rule.ratio(tensor, ratios, plan.base)
        # An embedding that is the head ends as the head, which the release loads last.
        return name.ratio("lm_head.weight" if rule.is_tied(tensor) else tensor, plan.base)

    def dtype(tensor: str) -> torch.dtype:
        if config.dtype != "auto":
            return getattr(torch, config.dtype or "bfloat16")  # type: ignore[no-any-return]
        return (model.tensors.get(tensor) or model.tensors[f"{blocks.input_embedding}.weight"]).dtype

    return Averaged(plan, parts, ratios, rule, ratio, dtype)


def scalar_weights(ratio: Float[Tensor, ""], dtype: torch.dtype) -> tuple[float, float]:
    """Return a and 1 - a as ``weight_mask_merge.py`` uses them, ``pre * a + (1 - a) * post`` with a tensor for a.

    1 - a is formed in the ratio's own dtype; standing on the left, it is then rounded to the dtype of the weights (by
    torch, on the CPU), which a on the right is not.

    Args:
        ratio: a.
        dtype: of the weights.
    """
    return float(ratio), float((1 - ratio).to(dtype))


def named_parts(name: LegacyName, layers: int) -> Parts:
    """Return the parts that a name of the release makes of a model, those without layers left out."""
    groups = tuple(str(name.part(layer)) for layer in range(layers))
    return Parts(name.level or "block1", tuple(sorted(set(groups), key=int)), groups)


def named_ratios(name: LegacyName, alpha: float, parts: Parts) -> dict[str, float]:
    """Return the ratios of the parts that a name makes of a model."""
    return {group: name.ratios[int(group)] if name.part_wise else alpha for group in parts.names}
