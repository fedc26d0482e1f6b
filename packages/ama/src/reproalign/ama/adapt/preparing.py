"""From options and opened models to a problem that a solver takes: rows, the merged model, what groups count for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from accelerate import PartialState
from torch.distributed.device_mesh import init_device_mesh
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reproalign.ama.adapt.config import AdaptConfig
from reproalign.ama.adapt.likelihood import LikelihoodObjective, mixed_precision
from reproalign.ama.adapt.merged import MERGED, PAIR, RatioModel
from reproalign.ama.adapt.pair import Pair, merge, merge_released
from reproalign.ama.adapt.parametrisation import Pull
from reproalign.ama.adapt.rows import PLAIN, TokenRow, make_rows
from reproalign.ama.adapt.settings import AdaptSettings
from reproalign.ama.adapt.solution import Problem
from reproalign.ama.ratios import constraint_weights
from reproalign.ama.tensors import TensorRule
from reproalign.common.data.records import Message
from reproalign.common.generation.asking import asking_tokenizer
from reproalign.common.launch.plan import check_in_force
from reproalign.common.merging.inputs import split_composed
from reproalign.common.models.load import load_causal_lm, load_tokenizer


@dataclass(frozen=True)
class PreparedProblem:
    """A problem, and rows that it does not see.

    Attributes:
        problem: for a solver.
        held_out: rows.
        settings: of the run.
    """

    problem: Problem
    held_out: Sequence[TokenRow]
    settings: AdaptSettings

    def loss_on_held_out(self, ratios: list[float]) -> float:
        """Return the negative log-likelihood per token of the held-out rows at ratios of the groups."""
        likelihood = self.problem.likelihood
        extra = [self.settings.base] * (len(likelihood.model.names) - len(ratios))
        likelihood.model.set_ratios([*ratios, *extra])
        size = self.problem.batch_size
        return likelihood.evaluate(self.held_out, size, gradient=False, label="held-out rows").value


def prepare(
    config: AdaptConfig,
    settings: AdaptSettings,
    pair: Pair,
    rule: TensorRule,
    train: Sequence[list[Message]],
    held_out: Sequence[list[Message]],
) -> PreparedProblem:
    """Tokenise the rows, load and merge the model.

    Raises:
        UserError: for rows that give nothing to learn from, or weights that cannot be read.
    """
    state = PartialState()
    check_in_force(config.launch.strategy, state.distributed_type.value)
    tokenizer = _tokenizer(config)
    with state.main_process_first():
        parts = [make_rows(dialogues, tokenizer, settings.form) for dialogues in (train, held_out)]
    model = _model(config, settings, pair, rule)
    likelihood = LikelihoodObjective(model, int(tokenizer.pad_token_id or 0), autocast=settings.variant.release_loop)
    layers = _linear_layers(model, pair)[: len(rule.parts.names)]
    pull = None
    if settings.penalty is not None:
        penalty = settings.penalty
        coefficients = penalty.regularizer.coefficients(layers, pair.blocks.layers, penalty.reduction)
        pull = Pull(penalty.regularizer, penalty.weight, coefficients)
    problem = Problem(
        likelihood=likelihood,
        rows=parts[0],
        settings=settings,
        names=rule.parts.names,
        weights=constraint_weights(rule.parts.layer_shares, settings.constraint),
        pull=pull,
        multiplicity=[len(group) for group in layers],
        batch_size=config.exact.batch_size,
        tolerance=config.exact.tolerance,
        max_evaluations=config.exact.max_evaluations,
        seed=config.seed,
    )
    return PreparedProblem(problem, parts[1], settings)


def _tokenizer(config: AdaptConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer of pre, which the release tokenises D_θ with, or the one that is named."""
    composed = split_composed(config.pre)
    model = replace(config.model, name=config.pre if composed is None else composed[0])
    return load_tokenizer(model) if config.layout == PLAIN else asking_tokenizer(model, config.layout)


def _model(config: AdaptConfig, settings: AdaptSettings, pair: Pair, rule: TensorRule) -> RatioModel:
    state = PartialState()
    sharded = config.launch.strategy == "fsdp"
    release_loop = settings.variant.release_loop
    dtype = "float32" if release_loop and config.model.dtype == "auto" else config.model.dtype
    held = replace(config.model, dtype=dtype)

    def load(number: int) -> PreTrainedModel:
        # Of an adapter its base, whose weights are merged over: so that it is no PeftModel.
        whole = replace(held, name=str(pair.models[number].folder))
        return cast(PreTrainedModel, load_causal_lm(whole, trainable=False))

    network = load(1)
    missing = [tensors.parameter for tensors in pair.locate(network, rule) if not tensors.names]
    if missing:
        pair.check_kept(missing)
        pair.keep(load(0), missing)
        pair.keep(network, missing)
    if release_loop:
        _to_bfloat16(network, pair, rule)
    if not sharded:
        network.to(state.device)  # type: ignore[arg-type]
    with mixed_precision(network.device, release_loop):  # the log-probs are tried out
        model = RatioModel(
            network,
            pair,
            rule,
            dict.fromkeys(rule.parts.names, settings.base),
            base=settings.base,
            with_base=release_loop and not rule.parts.has_head,
            merge=merge_released if release_loop else merge,
            held=PAIR if settings.solver == "published" else MERGED,
            chunk_size=config.logprobs_chunk,
        )
    if sharded:
        model.shard(init_device_mesh(state.device.type, (state.num_processes,)))
        network.to(state.device)  # type: ignore[arg-type]
    return model


def _to_bfloat16(network: PreTrainedModel, pair: Pair, rule: TensorRule) -> None:
    """Hold what is averaged in bfloat16 and the rest as loaded, as the release does.

    The head's entries are rounded alike, but held as loaded, since log-probabilities may be computed in chunks of their
    own, outside autocast.
    """
    for tensors in pair.locate(network, rule):
        in_layers = pair.blocks.block(tensors.parameter).layer is not None
        if isinstance(tensors.place, str) and in_layers:
            parameter = network.get_parameter(tensors.parameter)
            parameter.data = parameter.data.to(torch.bfloat16)


def _linear_layers(model: RatioModel, pair: Pair) -> list[list[int | None]]:
    """Return, for each group, the layers that its linear modules lie in; None is the head."""
    return [[pair.blocks.block(f"{name}.weight").layer for name in group] for group in model.linear_layers()]
