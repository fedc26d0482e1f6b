"""Ra-DPO's trainers: the shared loops with this paper's losses, schedule and evaluation."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from reproalign.common.config import LogprobsConfig
from reproalign.common.files import write_json
from reproalign.common.logprobs.model import StatisticsRequest, install_completion_logps
from reproalign.common.logprobs.statistics import Measure
from reproalign.common.text.collate import PairCollator, forward_inputs
from reproalign.common.training.collecting import CollectingTrainer, MicroBatch
from reproalign.common.training.pairs import PairScores, PairTrainer
from reproalign.common.training.preference import PairedPreferenceTrainer, PairLogps
from reproalign.common.training.reference import CachedReference, Reference
from reproalign.common.training.unpaired import ExampleLogps, ExampleScores, UnpairedTrainer
from reproalign.radpo.config import LossConfig, measure_name
from reproalign.radpo.loss import (
    PairLoss,
    cdpo_loss,
    dpo_loss,
    future_rewards,
    gae,
    kto_loss,
    kto_zero_loss,
    ppo_loss,
    sft_loss,
    slic_loss,
    terminal_rewards,
    token_level_loss,
)
from reproalign.radpo.released import loss_scale
from reproalign.radpo.replaced import replaced_statistics
from reproalign.radpo.risk import measure
from reproalign.radpo.schedule import Factor, warmup_cosine

logger = logging.getLogger(__name__)

EVALUATIONS = "evaluations.json"  # in a checkpoint


class RadpoTrainer(CollectingTrainer):
    """What the trainers of all ten losses share.

    Schedule: see :mod:`reproalign.radpo.schedule`. Evaluation: of held-out
    pairs, whatever the loss trains on, so that runs compare: accuracy, margins and, unless only log-probs of the
    reference are known, the sequential KL divergences of the paper's figures.

    Args:
        loss: the objective.
        variant: ``released`` adds up a micro-batch's losses where ``paper`` averages them (ERRATA Q4).
        warmup_steps: optimiser steps, of the schedule that ``schedule=None`` stands for.
        schedule: the rate's share at each optimiser step; None: a cosine that ends with the run.
        accumulation: released: what the summed losses of a step are divided by; None: its micro-batches here.
        pairs: held-out pairs as :func:`~reproalign.common.text.pairs.tokenize_pairs` makes them; those of several
            passes one after the other, see :func:`~reproalign.radpo.data.prepare_held_out`.
        pairs_per_pass: pairs of one evaluation; None: all.
        reference: the frozen reference; None: rewards are plain log-probs (SFT, SLiC).
        **kwargs: passed on.
    """

    def __init__(
        self,
        *,
        loss: LossConfig,
        variant: str,
        warmup_steps: int,
        schedule: Factor | None = None,
        accumulation: int | None = None,
        pairs: Dataset | None = None,
        pairs_per_pass: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.loss_config, self.variant, self.accumulation = loss, variant, accumulation
        self.warmup_steps, self.schedule, self.pairs = warmup_steps, schedule, pairs
        self.pairs_per_pass = pairs_per_pass or (len(pairs) if pairs is not None else 0)
        self.evaluations = 0
        super().__init__(**kwargs)

    reference: Any = None  # Reference, or None
    measure: Measure | None = None  # Φ of the risk ratio

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """Make the schedule of the class docstring."""
        if self.lr_scheduler is None:
            factor = self.schedule or warmup_cosine(self.warmup_steps, num_training_steps)
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, factor)  # type: ignore[arg-type]
        return self.lr_scheduler  # type: ignore[no-any-return]

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Name the parameters that decay: under ``released`` all of them, biases and norms too (ERRATA Q23)."""
        if self.variant == "released":
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)

    def save_state(self, checkpoint: Path) -> None:
        """Write how many evaluations there were, since they may change what the next one reads (ERRATA Q7)."""
        if self.args.process_index == 0:
            write_json(checkpoint / EVALUATIONS, {"evaluations": self.evaluations})

    def load_state(self, checkpoint: Path) -> None:
        """Read back what :meth:`save_state` wrote; a checkpoint of an earlier version has no count."""
        if (checkpoint / EVALUATIONS).is_file():
            self.evaluations = json.loads((checkpoint / EVALUATIONS).read_text(encoding="utf-8"))["evaluations"]

    def scale(self, rows: int) -> float:
        """Return what a micro-batch's losses are multiplied by before their mean is taken."""
        if self.variant != "released":
            return 1.0
        here = self.args.world_size * self.args.gradient_accumulation_steps
        return loss_scale(self.loss_config.name, rows, here, self.accumulation)

    def micro_batch(self, model: nn.Module, inputs: dict[str, Tensor]) -> MicroBatch:
        """Scale the losses as :meth:`scale` says."""
        result = super().micro_batch(model, inputs)  # type: ignore[safe-super]
        return replace(result, losses=result.losses * self.scale(len(result.losses)))

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Measure the held-out pairs and log what :meth:`measure_pairs` finds."""
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.measure_pairs().items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def measure_pairs(self) -> dict[str, float]:
        """Return the means over the held-out pairs, from all processes; of several passes over them the next one's."""
        if self.pairs is None:
            return {}
        model = self.model_wrapped
        training = model.training
        model.eval()
        parts: dict[str, list[Tensor]] = {}
        for batch in self._pair_batches():
            with torch.no_grad(), self.accelerator.autocast():  # also where the model is not wrapped
                found = self._measure(model, batch)
            for name, value in found.items():
                parts.setdefault(name, []).append(self.accelerator.gather_for_metrics(value.float()))
        model.train(training)
        self.evaluations += 1
        return {name: torch.cat(values).mean().item() for name, values in parts.items()}

    def _pair_batches(self) -> Iterator[dict[str, Tensor]]:
        pad = self.processing_class.pad_token_id  # type: ignore[union-attr]
        assert self.pairs is not None
        start = min(self.evaluations * self.pairs_per_pass, len(self.pairs) - self.pairs_per_pass)
        loader: DataLoader[Any] = DataLoader(
            self.pairs.select(range(start, start + self.pairs_per_pass)),  # type: ignore[arg-type]
            batch_size=self.args.per_device_eval_batch_size,
            collate_fn=PairCollator(pad),
        )
        yield from self.accelerator.prepare_data_loader(loader)

    def _measure(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return per pair: rewards β u, accuracy, log-probs, and, where the reference gives them, sequential KLs,
        (with a measure) risk ratios, and for TDPO and Ra-DPO the accuracy of β (u + T).
        """
        has_beta = self.reference is not None and self.loss_config.name != "slic"
        beta = self.loss_config.beta if has_beta else 1.0
        found: dict[str, Tensor] = {}
        if self.reference is None or isinstance(self.reference, CachedReference):
            sums = model(**forward_inputs(batch), use_cache=False)["sums"]
            ratios = sums if self.reference is None else sums - self.reference.logps(model, batch)
        else:
            statistics = self.statistics(model, batch)
            sums, ratios = statistics["logps"], statistics["logps"] - statistics["ref_logps"]
            found |= _sides("kl", statistics["forward_kl"])
            if self.measure:
                found |= _sides("risk_ratio", statistics["risk"])
            found |= self.own_columns(statistics)
        chosen, rejected = (beta * ratios).chunk(2)
        return {
            **{f"rewards/{name}": value for name, value in _reward_columns(chosen, rejected).items()},
            **_sides("logps", sums, margin=False),
            **found,
        }

    def own_columns(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what a loss measures per pair beside what all of them do."""
        return {}

    def statistics(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return (rows,) sums over responses: logps, ref_logps, forward_kl and, with a measure, risk."""
        names = ("logps", "ref_logps", "forward_kl", *(("risk",) if self.measure else ()))
        request = StatisticsRequest(self.reference.states(model, batch), names, self.measure)
        return model(**forward_inputs(batch), statistics=request, use_cache=False)["sums"]  # type: ignore[no-any-return]


class MeasureBefore(TrainerCallback):
    """Measures the held-out pairs before the first step, when the model is placed and sharded, and logs them there."""

    def __init__(self, trainer: RadpoTrainer) -> None:
        self.trainer = trainer
        self.metrics: dict[str, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure, unless the run goes on from a checkpoint."""
        if state.global_step == 0:
            self.metrics = self.trainer.measure_pairs()
            self.trainer.log({f"eval_{name}": value for name, value in self.metrics.items()})


class CompletionTrainer(RadpoTrainer):
    """SFT and CSFT: -log π(y|x)."""

    def __init__(self, *, logprobs: LogprobsConfig, **kwargs: Any) -> None:
        model = kwargs["model"]
        install_completion_logps(model, implementation=logprobs.implementation, chunk_size=logprobs.chunk_size)
        super().__init__(**kwargs)

    def micro_batch(self, model: nn.Module, inputs: dict[str, Tensor]) -> MicroBatch:
        """Return the losses; metrics are the log-probs of a response and of a token."""
        output = model(**forward_inputs(inputs), use_cache=False)
        losses = sft_loss(output["sums"])
        metrics = {"logps/completions": output["sums"], "logps/tokens": output["per_token"]}
        return MicroBatch(losses * self.scale(len(losses)), metrics, output["sums"], torch.ones_like(output["sums"]))


class PairLossTrainer(RadpoTrainer, PairedPreferenceTrainer):
    """DPO, CDPO and SLiC: losses of summed log-probs."""

    def pair_loss(self, logps: PairLogps, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return losses and rewards."""
        loss = self.loss_config
        if loss.name == "slic":
            return slic_loss(logps.policy_chosen, logps.policy_rejected, loss.beta, loss.lambda_coef)
        chosen, rejected = logps.policy_chosen - logps.ref_chosen, logps.policy_rejected - logps.ref_rejected
        if loss.name == "cdpo":
            return cdpo_loss(chosen, rejected, loss.beta, loss.epsilon)
        return dpo_loss(chosen, rejected, loss.beta)


class TokenLevelTrainer(RadpoTrainer, PairTrainer):
    """TDPO and Ra-DPO: a divergence or risk of the whole distribution at every token."""

    def __init__(self, *, reference: Reference, logprobs: LogprobsConfig, **kwargs: Any) -> None:
        model = kwargs["model"]
        install_completion_logps(model, implementation=logprobs.implementation, chunk_size=logprobs.chunk_size)
        super().__init__(**kwargs)
        self.reference = reference
        reference.prepare(self.accelerator, logprobs)
        self.measure = risk_measure(self.loss_config, self.variant)

    def margins(self, sums: dict[str, Tensor]) -> Tensor:
        """Return the log-ratios u that are trained on."""
        return sums["logps"] - sums["ref_logps"]

    def term(self, sums: dict[str, Tensor]) -> Tensor:
        """Return the token-level term T: the sequential risk ratio, or KL for TDPO."""
        return sums["risk"] if self.measure else sums["forward_kl"]

    def own_columns(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return whether β (u + T) prefers the chosen response: the accuracy of the paper's figures."""
        if self.loss_config.name not in ("tdpo", "ra-dpo"):
            return {}
        chosen, rejected = (self.margins(sums) + self.term(sums)).chunk(2)
        return {"rewards/accuracies_with_term": (chosen > rejected).float()}

    def pair_scores(self, model: nn.Module, inputs: dict[str, Tensor]) -> PairScores:
        """Compute the statistics of the micro-batch, and the loss of their sums."""
        sums = self.statistics(model, inputs)
        margins, term = self.margins(sums), self.term(sums)
        loss = self.loss_config
        (chosen, rejected), (chosen_term, rejected_term) = margins.chunk(2), term.chunk(2)
        alpha = loss.alpha if loss.second_form else None
        result: PairLoss = token_level_loss(chosen, rejected, chosen_term, rejected_term, loss.beta, alpha)
        metrics = {**_sides("kl", sums["forward_kl"]), **_sides("logps", sums["logps"], margin=False)}
        if self.measure:
            metrics |= _sides("risk_ratio", sums["risk"])
        per_token = (sums["logps"] / inputs["completion_mask"][:, 1:].sum(1)).chunk(2)
        return PairScores(
            result.losses,
            result.chosen_rewards,
            result.rejected_rewards,
            metrics=metrics,
            likelihoods=(per_token[0], per_token[1]),
        )


class ReplacedDistributionTrainer(TokenLevelTrainer):
    """Ra-DPO as released with ``is_cal_risk_distribution_logps=true``: quantiles stand for log-probs (ERRATA Q2).

    What stands for the log-prob of a response's token depends on the policy's whole distribution, so the policy's full
    logits are held, (rows, length, vocab); what is made of them, chunk by chunk. Logged log-probs and KL, and rewards
    of held-out pairs, are of the true ones.
    """

    def __init__(self, *, logprobs: LogprobsConfig, **kwargs: Any) -> None:
        super().__init__(logprobs=logprobs, **kwargs)
        self.chunk_size = logprobs.chunk_size
        logger.warning(
            "loss.is_cal_risk_distribution_logps=true holds the full logits of a micro-batch (rows x length x "
            "vocabulary) and their gradient; if memory runs out, lower trainer.per_device_train_batch_size and "
            "trainer.per_device_eval_batch_size, or text.max_length"
        )

    def statistics(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return :func:`~reproalign.radpo.replaced.replaced_statistics` of the batch."""
        inputs = {name: value for name, value in forward_inputs(batch).items() if name != "completion_mask"}
        reference = self.reference.states(model, batch)
        logits = model(**inputs, use_cache=False).logits
        return replaced_statistics(logits, batch, reference, self.loss_config, self.chunk_size)

    def margins(self, sums: dict[str, Tensor]) -> Tensor:
        """Return the log-ratios of what stands for the log-probs."""
        return sums["replaced_logps"] - sums["replaced_ref_logps"]


def token_level_trainer(loss: LossConfig, variant: str) -> type[TokenLevelTrainer]:
    """Return the trainer of TDPO or Ra-DPO for ``loss``."""
    replaced = measure_name(loss, variant) == "released_tail" and loss.is_cal_risk_distribution_logps
    return ReplacedDistributionTrainer if replaced else TokenLevelTrainer


class ExampleTrainer(RadpoTrainer, UnpairedTrainer):
    """KTO, KTO-zero and PPO."""

    advantages: Tensor  # of PPO's batch

    def example_loss(self, logps: ExampleLogps, inputs: dict[str, Tensor]) -> ExampleScores:
        """Return losses and rewards."""
        if self.loss_config.name == "ppo":
            return self._ppo(logps)
        loss, ratios = self.loss_config, logps.policy - logps.ref
        weights = (loss.desirable_weight, loss.undesirable_weight)
        if loss.name == "kto-zero":
            return ExampleScores(*kto_zero_loss(ratios, logps.desirable, loss.beta, *weights))
        kl = logps.tokenwise_kl if loss.tokenwise_KL else logps.kl
        assert kl is not None  # the rows of KTO have mismatched pairs
        return ExampleScores(*kto_loss(ratios, logps.desirable, kl, loss.beta, *weights))

    def _ppo(self, logps: ExampleLogps) -> ExampleScores:
        assert logps.values is not None  # PPO's policies have a value head
        loss = self.loss_config
        rewards = terminal_rewards(logps.desirable, logps.mask)
        if self.state.global_step % loss.ppo_epochs == 0:  # the batch is new: its advantages hold for all its epochs
            values = logps.values
            self.advantages = gae(values, rewards.to(values.dtype), logps.mask, loss.gamma, loss.lam)
        result = ppo_loss(
            logps.policy_tokens,
            logps.ref_tokens,
            logps.values,
            self.advantages,
            future_rewards(rewards.to(logps.values.dtype), logps.mask, loss.gamma),
            logps.mask,
            loss.cliprange,
            loss.critic_coef,
            loss.KL_coef,
        )
        names = ("policy", "critic", "kl", "clip_fraction", "sequence_ratio")
        return ExampleScores(
            result.losses, result.rewards, metrics={f"ppo/{name}": getattr(result, name) for name in names}
        )


def risk_measure(loss: LossConfig, variant: str) -> Measure | None:
    """Return Φ of ``ra-dpo``; None for ``tdpo``, whose term is the KL.

    Raises:
        UserError: for an unknown measure or parameters out of range.
    """
    name = measure_name(loss, variant)
    if name is None:
        return None
    if name == "released_tail":
        return measure(name, level=loss.confidence_level, split=loss.is_split_risk_ratio)
    if name in ("cvar", "cvar_complement"):
        return measure(name, level=loss.confidence_level)
    if name == "expectation":
        return measure(name)
    scale = {"beta": loss.beta} if name == "entropic_scaled" else {}
    return measure(name, coefficient=loss.coefficient, **scale)


def _sides(name: str, values: Float[Tensor, " rows"], *, margin: bool = True) -> dict[str, Tensor]:
    chosen, rejected = values.detach().chunk(2)
    sides = {f"{name}/chosen": chosen, f"{name}/rejected": rejected}
    return sides | {f"{name}/margins": chosen - rejected} if margin else sides


def _reward_columns(chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
    return {
        "chosen": chosen,
        "rejected": rejected,
        "margins": chosen - rejected,
        "accuracies": (chosen > rejected).float(),
    }
