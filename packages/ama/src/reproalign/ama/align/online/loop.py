"""The iterations of a run: draw, score, measure, update, keep."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

from transformers import PreTrainedTokenizerBase

from reproalign.ama.align.online.kept import Standing, keep_iteration
from reproalign.ama.align.online.learner import Learner, epochs
from reproalign.ama.align.online.objective import adapted_coefficient
from reproalign.ama.align.online.progress import Bars
from reproalign.ama.align.online.prompts import Prompts
from reproalign.ama.align.online.report import collapse_signs, describe, write_samples
from reproalign.ama.align.online.rewards import PromptRewards
from reproalign.ama.align.online.rollouts import Asker, Rollout, measure_rollouts, roll_out
from reproalign.ama.align.online.state import save_state
from reproalign.ama.align.online.update import make_experience, update
from reproalign.ama.align.ppo_config import PPOConfig
from reproalign.ama.align.prompt_batches import next_batch
from reproalign.common.generation.asking import turn_end
from reproalign.common.records import Run
from reproalign.common.text.collate import pad_id

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loop:
    """What the iterations of a run share.

    Attributes:
        config: of the run.
        run: the open record.
        learner: policy, value head, reference, optimiser.
        tokenizer: of the policy.
        prompts: all of them.
        rewards: the reward model.
        first: the number of this run's first iteration; more than 1 after a restart.
    """

    config: PPOConfig
    run: Run
    learner: Learner
    tokenizer: PreTrainedTokenizerBase
    prompts: Prompts
    rewards: PromptRewards
    first: int

    def __call__(self, standing: Standing) -> None:
        """Run the iterations that are left after ``standing``."""
        shown = self.learner.accelerator.is_main_process
        with Bars(standing.iteration, self.config.iterations, shown=shown) as bars:
            while standing.iteration < self.config.iterations:
                standing = self._iterate(standing, bars)

    def _iterate(self, before: Standing, bars: Bars) -> Standing:
        config, iteration = self.config, before.iteration + 1
        started = time.perf_counter()
        rollouts = self._roll_out(iteration, bars)
        drawn = time.perf_counter()
        baseline = before.baseline
        if baseline is None:
            baseline = fmean(rollout.reward for rollout in rollouts)
        found = describe(rollouts, baseline=baseline, eta=before.eta)
        passes = len(rollouts) * epochs(config)
        found |= update(
            config,
            self.learner,
            make_experience(config, rollouts, baseline=baseline, eta=before.eta),
            iteration=iteration,
            pad_id=pad_id(self.tokenizer),
            critic_only=iteration < self.first + config.critic_warmup,
            advance=bars.phase("updating", passes),
        )
        found |= {"seconds_rollouts": drawn - started, "seconds_update": time.perf_counter() - drawn}
        standing = Standing(iteration, self._next_eta(before.eta, found["kl"], len(rollouts)), baseline)
        if self.run.is_main:
            self._keep(standing, rollouts, found)
        self.learner.accelerator.wait_for_everyone()
        bars.iteration_done(f"reward {found['reward']:.3f}, KL {found['kl']:.2f}")
        return standing

    def _roll_out(self, iteration: int, bars: Bars) -> list[Rollout]:
        config, learner = self.config, self.learner
        model: Any = learner.model
        ends = model.generation_config.eos_token_id
        end_ids = {self.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        stop = turn_end(self.tokenizer, config.layout)
        chosen = next_batch(len(self.prompts.ids), config.prompts_per_iteration, iteration - 1, config.seed)
        processes = learner.accelerator.num_processes
        return roll_out(
            learner.policy,
            learner.accelerator,
            Asker(self.tokenizer, stop, frozenset(map(int, end_ids)), config.max_new_tokens),
            self.rewards,
            partial(
                measure_rollouts,
                model,
                learner.reference,
                pad_id=pad_id(self.tokenizer),
                rows=2 * config.micro_batch_size,
            ),
            [(index, self.prompts.ids[index]) for index in chosen],
            at_once=config.sampling_batch_size,
            seed=f"{config.seed}-{iteration}",
            advance=bars.phase("sampling", -(-len(chosen) // processes)),
        )

    def _next_eta(self, eta: float, kl: float, responses: int) -> float:
        options = self.config.kl
        if options.controller == "fixed":
            return eta
        return adapted_coefficient(eta, kl, responses, target=options.target, horizon=options.horizon)

    def _keep(self, standing: Standing, rollouts: list[Rollout], found: dict[str, float]) -> None:
        """Log the iteration and write its files; the sealed checkpoint comes last, so that nothing is half done."""
        config, folder, iteration = self.config, self.run.dir, standing.iteration
        earlier = [row for row in self.run.rows if row["step"] < iteration]
        signs = collapse_signs([*earlier, {"step": iteration, **found}])
        self.run.log(iteration, {**found, "collapse_signs": len(signs)})
        if signs:
            logger.warning(
                "iteration %d shows signs of a collapse: %s. The paper's remedy is restart_from=%s critic_warmup=1 "
                "in a new output_dir",
                iteration,
                "; ".join(signs),
                folder / f"iteration-{max(iteration - 3, 1)}",
            )
        if iteration == self.first and abs(found["reward"] - found["reward_baseline"]) > 3 * found["reward_std"] > 0:
            logger.warning(
                "rewards are %.3f on average, reward_baseline is %.4g: the value head has to learn the difference "
                "first; set reward_baseline=null (the first iteration's mean) or what suits this reward model",
                found["reward"],
                found["reward_baseline"],
            )
        write_samples(
            folder / "samples" / f"iteration-{iteration}.jsonl", rollouts, self.prompts.messages, config.samples
        )
        if iteration % config.save_every == 0 or iteration == config.iterations:
            model = self.learner.model
            keep_iteration(folder / f"iteration-{iteration}", config, model, self.tokenizer, standing)
        save_state(folder, self.learner, standing, self.run.rows)
