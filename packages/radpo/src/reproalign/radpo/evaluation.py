"""What every run is measured by: held-out pairs, whatever the objective trains on, so that runs compare."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from reproalign.common.files import write_json
from reproalign.common.text.collate import PairCollator
from reproalign.common.training.collecting import TrainerEvaluation
from reproalign.common.training.objective import Needs
from reproalign.common.training.pairs import sides, statistics_by_side
from reproalign.common.training.policy import PolicyTrainer, respond
from reproalign.common.training.reference import CachedReference
from reproalign.radpo.objectives.base import RadpoObjective

EVALUATIONS = "evaluations.json"  # in a checkpoint


class PairEvaluation(TrainerEvaluation):
    """Accuracy, margins and, unless only log-probs of the reference are known, the paper's sequential KL divergences.

    Args:
        objective: scales the rewards, and may have a risk and a term of its own.
        pairs: held-out pairs as :func:`~reproalign.common.text.pairs.tokenize_pairs` makes them; those of several
            passes one after the other, see :func:`~reproalign.radpo.data.prepare_held_out`.
        pairs_per_pass: pairs of one evaluation; None: all.
        pad_id: what batches are padded with.
    """

    def __init__(self, objective: RadpoObjective, pairs: Dataset, pairs_per_pass: int | None, pad_id: int) -> None:
        self.objective, self.pairs, self.pad_id = objective, pairs, pad_id
        self.pairs_per_pass = pairs_per_pass or len(pairs)
        self.evaluations = 0

    def save(self, checkpoint: Path) -> None:
        """Write how many evaluations there were, since they may change what the next one reads (ERRATA Q7)."""
        write_json(checkpoint / EVALUATIONS, {"evaluations": self.evaluations})

    def load(self, checkpoint: Path) -> None:
        """Read back what :meth:`save` wrote; a checkpoint of an earlier version has no count."""
        if (checkpoint / EVALUATIONS).is_file():
            self.evaluations = json.loads((checkpoint / EVALUATIONS).read_text(encoding="utf-8"))["evaluations"]

    def measure(self, trainer: Any) -> dict[str, float]:
        """Return the means over the held-out pairs, from all processes; of several passes over them the next one's."""
        model = trainer.model_wrapped
        training = model.training
        model.eval()
        parts: dict[str, list[Tensor]] = {}
        for batch in self._batches(trainer):
            with torch.no_grad(), trainer.accelerator.autocast():  # also where the model is not wrapped
                found = self._columns(trainer, model, batch)
            for name, value in found.items():
                parts.setdefault(name, []).append(trainer.accelerator.gather_for_metrics(value.float()))
        model.train(training)
        self.evaluations += 1
        return {name: torch.cat(values).mean().item() for name, values in parts.items()}

    def _batches(self, trainer: PolicyTrainer) -> Iterator[dict[str, Tensor]]:
        start = min(self.evaluations * self.pairs_per_pass, len(self.pairs) - self.pairs_per_pass)
        loader: DataLoader[Any] = DataLoader(
            self.pairs.select(range(start, start + self.pairs_per_pass)),  # type: ignore[arg-type]
            batch_size=trainer.args.per_device_eval_batch_size,
            collate_fn=PairCollator(self.pad_id),
        )
        yield from trainer.accelerator.prepare_data_loader(loader)

    def _columns(self, trainer: PolicyTrainer, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return per pair: rewards β u, accuracy, log-probs, and, where the reference gives them, sequential KLs, (with
        a measure) risk ratios, and for an objective with a term T the accuracy of β (u + T).
        """
        needs = self.objective.needs
        if trainer.reference is None or isinstance(trainer.reference, CachedReference):
            needs = Needs("pairs")
        elif not needs.statistics:
            needs = Needs("pairs", "distribution", statistics=("forward_kl",))
        responses = respond(model, batch, needs, trainer.reference, trainer.logprobs.chunk_size)
        scale = 1.0 if trainer.reference is None else self.objective.reward_scale
        rewards = scale * responses.log_ratios
        chosen, rejected = rewards.chunk(2)
        found = {**sides("rewards", rewards), "rewards/accuracies": (chosen > rejected).float()}
        found |= {**sides("logps", responses.logps, margin=False), **statistics_by_side(responses)}
        if needs.statistics and (whole := self.objective.with_term(responses)) is not None:
            chosen, rejected = whole.chunk(2)
            found["rewards/accuracies_with_term"] = (chosen > rejected).float()
        return found


class MeasureBefore(TrainerCallback):
    """Measures the held-out pairs before the first step, when the model is placed and sharded, and logs them there."""

    def __init__(self, trainer: PolicyTrainer, evaluation: PairEvaluation) -> None:
        self.trainer, self.evaluation = trainer, evaluation

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure, unless the run goes on from a checkpoint."""
        if state.global_step == 0:
            metrics = self.evaluation.measure(self.trainer)
            self.trainer.log({f"eval_{name}": value for name, value in metrics.items()})
