"""Training a policy on single completions, without a reference: supervised fine-tuning on summed log-probs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reproalign.common.training.collecting import MicroBatch
from reproalign.common.training.objective import ExampleScores
from reproalign.common.training.policy import PolicyTrainer, respond


class CompletionTrainer(PolicyTrainer):
    """Trains a policy on rows of a prompt and a completion; :meth:`rewards` are (rows,), its targets 1.

    Batches come from :class:`reproalign.common.text.collate.UnpairedCollator`. Logs have the log-probs of a completion
    and of a token.
    """

    def micro_batch(self, model: nn.Module, inputs: dict[str, Tensor]) -> MicroBatch:
        """Compute the log-probs of the micro-batch and hand them to the objective."""
        responses = respond(model, inputs, self.objective.needs, self.reference)
        scores: ExampleScores = self.objective(responses)
        assert responses.per_token is not None  # no statistics are asked for
        metrics = {"logps/completions": responses.logps, "logps/tokens": responses.per_token, **scores.metrics}
        return MicroBatch(scores.losses, metrics, scores.rewards, torch.ones_like(scores.rewards))
