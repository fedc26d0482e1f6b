"""``ama align ppo``: proximal policy optimisation against a reward model, from prompts to an aligned model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from reproalign.ama.align.online.kept import Kept, Standing, keep_final, read_kept
from reproalign.ama.align.online.learner import Learner, make_accelerator, make_learner
from reproalign.ama.align.online.loop import Loop
from reproalign.ama.align.online.prompts import Prompts, load_prompts
from reproalign.ama.align.online.report import draw, summary
from reproalign.ama.align.online.rewards import PromptRewards, reading, reward_model
from reproalign.ama.align.online.state import load_state, logged_rows
from reproalign.ama.align.ppo_config import KLOptions, PPOConfig
from reproalign.common.console import result_console
from reproalign.common.errors import UserError
from reproalign.common.files import sha256_json
from reproalign.common.generation.asking import asking_tokenizer
from reproalign.common.invocation import Invocation
from reproalign.common.models.identify import identify_weights
from reproalign.common.models.kind import check_language_model, check_reward_model, model_kind
from reproalign.common.records import Run
from reproalign.common.training.checkpoints import resume_from
from reproalign.common.training.fit import FINAL


def ppo(config: PPOConfig, invocation: Invocation) -> None:
    """Draw, score, measure and update, iteration by iteration; keep the policy of every ``save_every``-th.

    The equations are in :mod:`reproalign.ama.align.online.objective`. ``model/`` is the policy of the last iteration.

    Raises:
        UserError: for a mistake in the options or the files that they name.
        ReportedError: if the loss is not finite.
    """
    check_ppo(config)
    accelerator = make_accelerator(config)  # before anything else asks for the processes
    start = read_kept(config)
    check_language_model(config.model)
    if config.reference and model_kind(replace(config.model, name=config.reference), "reference")[0] == "reward":
        raise UserError(f"reference={config.reference} is a reward model; give a language model")
    check_reward_model(reward_model(config), "reward")
    reading(config)
    with Run.open(invocation, is_main=accelerator.is_main_process) as run:
        tokenizer = asking_tokenizer(config.model, config.layout)
        prompts = load_prompts(config, tokenizer, shown=run.is_main)
        if run.is_main:
            _record_inputs(run, config, prompts, start)
        learner = make_learner(config, accelerator, tokenizer, start)
        standing = _standing(config, run.dir, learner, start, run)
        first = start.standing.iteration + 1 if start else 1
        rewards = PromptRewards(config, prompts.messages)
        Loop(config, run, learner, tokenizer, prompts, rewards, first)(standing)
        _finish(run, config, accelerator, learner, tokenizer)


def check_ppo(config: PPOConfig) -> None:
    """Refuse options that nothing can be trained with.

    Raises:
        UserError: naming the key, its value and what is allowed.
    """
    for name in ("target", "horizon") if config.kl.controller == "fixed" else ():
        if getattr(config.kl, name) != getattr(KLOptions, name):
            raise UserError(f"kl.{name} is of kl.controller=adaptive; remove it, or set kl.controller=adaptive")
    if config.prompts_per_iteration % config.update_batch_size:
        raise UserError(
            f"prompts_per_iteration={config.prompts_per_iteration} must be a multiple of "
            f"update_batch_size={config.update_batch_size}"
        )
    if config.restart_from is None and config.restart_critic == "kept":
        raise UserError("restart_critic=kept needs restart_from=RUN/iteration-K; leave it out")
    if config.model.dtype == "float16":
        raise UserError(
            "model.dtype=float16 cannot be trained with PPO; set model.dtype=float32, and bf16=true on a GPU"
        )
    _check_launch(config)


def _check_launch(config: PPOConfig) -> None:
    """Refuse what responses cannot be drawn under, and mini-batches that processes cannot share.

    Raises:
        UserError: naming the key.
    """
    launch = config.launch
    if launch.strategy not in ("single", "ddp"):
        raise UserError(
            f"launch.strategy={launch.strategy}: ama align ppo draws responses from whole weights, which every process "
            "holds; set launch=ddp, and model.lora.enabled=true or gradient_checkpointing=true if memory is short"
        )
    if config.update_batch_size % launch.processes:
        raise UserError(
            f"update_batch_size={config.update_batch_size} must be a multiple of launch.processes={launch.processes}"
        )


def _record_inputs(run: Run, config: PPOConfig, prompts: Prompts, start: Kept | None) -> None:
    run.add_fingerprint(
        "data",
        "prompts",
        sha256_json(prompts.messages),
        path=config.prompts,
        rows=len(prompts.ids),
        dropped=prompts.dropped,
    )
    models = {"policy": (config.model.name, config.model.revision), "reward": (config.reward, config.scoring.revision)}
    if config.reference:
        models["reference"] = (config.reference, None)
    if start:
        models["restart"] = (str(start.weights), None)
    for role, (name, revision) in models.items():
        run.add_fingerprint("weights", role, identify_weights(name, revision), name=name, revision=revision)


def _standing(config: PPOConfig, run_dir: Path, learner: Learner, start: Kept | None, run: Run) -> Standing:
    """Return where the run goes on: at its newest good checkpoint, else after the kept iteration, else at the start."""
    checkpoint = resume_from(run_dir, config.resume, config.on_bad_checkpoint)
    run.set("resumed_from", checkpoint.name if checkpoint else None)
    run.log_again(logged_rows(checkpoint) if checkpoint else [])
    if checkpoint:
        return load_state(checkpoint, learner)
    if start is None:
        return Standing(0, config.kl.coef, config.reward_baseline)
    before = start.standing
    eta = before.eta if config.kl.controller == "adaptive" else config.kl.coef
    return Standing(
        before.iteration, eta, before.baseline if config.reward_baseline is None else config.reward_baseline
    )


def _finish(
    run: Run, config: PPOConfig, accelerator: Accelerator, learner: Learner, tokenizer: PreTrainedTokenizerBase
) -> None:
    if run.is_main:
        keep_final(run.dir / FINAL, config, learner.model, tokenizer)
        run.made_weights(FINAL, run.dir / FINAL)
        history = run.rows
        run.set_metrics(summary(history))
        draw(history, run.dir / "plots" / "training.png")
        table = Table("", "", header_style="bold")
        for name, value in run.record["metrics"].items():
            table.add_row(name.replace("_", " "), f"{value:.4f}" if isinstance(value, float) else str(value))
        console = result_console()
        console.print(table)
        console.print(f"model, iterations, samples, record and plot: {run.dir}")
    accelerator.wait_for_everyone()
