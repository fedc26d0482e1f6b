"""Training a policy on an objective: the trainer of every shape of rows adds which batches it makes of them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from reproalign.common.config.model import LogprobsConfig
from reproalign.common.logprobs.model import install_completion_logps
from reproalign.common.logprobs.questions import StatisticsRequest
from reproalign.common.logprobs.values import install_completion_values
from reproalign.common.models.value_head import has_value_head
from reproalign.common.text.collate import forward_inputs
from reproalign.common.training.collecting import CollectingTrainer
from reproalign.common.training.objective import Needs, Objective, Responses
from reproalign.common.training.reference import Reference


class PolicyTrainer(CollectingTrainer):
    """A trainer of a policy, maybe against a frozen reference, on what an objective makes of its batches.

    Args:
        objective: see :mod:`reproalign.common.training.objective`.
        reference: the frozen policy, see :mod:`reproalign.common.training.reference`; None: there is none.
        logprobs: how per-token log-probabilities are computed.
        **kwargs: passed on to :class:`CollectingTrainer`.
    """

    def __init__(
        self,
        *,
        objective: Objective,
        reference: Reference | None = None,
        logprobs: LogprobsConfig | None = None,
        **kwargs: Any,
    ) -> None:
        self.objective: Objective = objective
        self.reference, self.logprobs = reference, logprobs or LogprobsConfig()
        install = install_completion_values if has_value_head(kwargs["model"]) else install_completion_logps
        install(kwargs["model"], self.logprobs)
        super().__init__(**kwargs)
        if reference is not None:
            reference.prepare(self.accelerator, self.logprobs)


def respond(
    model: nn.Module,
    inputs: dict[str, Tensor],
    needs: Needs,
    reference: Reference | None,
    chunk_size: int | None = None,
) -> Responses:
    """Run policy and reference on a batch of responses.

    Args:
        model: the policy, which answers ``completion_mask=``.
        inputs: ``input_ids``, ``attention_mask`` and ``completion_mask``, (rows, seq).
        needs: which statistics beside log-probs, if any.
        reference: needed for statistics; None: there is no reference.
        chunk_size: positions whose distributions exist at once, for ``needs.of_logits``; None: by the memory there is.
    """
    if not needs.statistics:
        output = model(**forward_inputs(inputs), use_cache=False)
        sums = output["sums"]
        ref_logps = None if reference is None else reference.logps(model, inputs)
        return Responses(sums, output["counts"].to(sums.dtype), ref_logps, per_token=output["per_token"])
    assert reference is not None  # statistics are against one
    states = reference.states(model, inputs)
    if needs.of_logits is not None:
        unmasked = {name: value for name, value in forward_inputs(inputs).items() if name != "completion_mask"}
        found = dict(needs.of_logits(model(**unmasked, use_cache=False).logits, inputs, states, chunk_size))
    else:
        request = StatisticsRequest(states, ("logps", "ref_logps", *needs.statistics), needs.measure)
        found = dict(model(**forward_inputs(inputs), statistics=request, use_cache=False)["sums"])
    tokens = inputs["completion_mask"][:, 1:].sum(1).to(found["logps"].dtype)
    return Responses(found.pop("logps"), tokens, found.pop("ref_logps"), statistics=found)
