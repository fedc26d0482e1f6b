"""Options of ``ama align ppo``."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from reproalign.ama.frontier.config import RewardOptions
from reproalign.common.config import LaunchConfig, LogprobsConfig, ModelConfig


@dataclass
class KLOptions:
    """The penalty of leaving π_0: η of the shaped reward r - η log(π/π_0)."""

    coef: float = 0.1  # η, at least 0; the paper's series are 0.05, 0.1 and 0.2
    controller: str = "fixed"  # fixed | adaptive (TRL's: η follows the KL towards the target)
    target: float = 6.0  # adaptive: KL of a response in nats, above 0
    horizon: int = 10_000  # adaptive: responses over which η adapts, at least 1


@dataclass
class PPOConfig:
    """``align ppo``: proximal policy optimisation of responses against a reward model, with a KL penalty."""

    output_dir: str = MISSING
    seed: int = 42  # of the prompts' order, the responses, the mini-batches and the value head
    resume: str = "auto"  # auto | never | a checkpoint folder
    on_bad_checkpoint: str = "fallback"  # fallback: use the last good one | stop
    model: ModelConfig = field(default_factory=ModelConfig)  # the policy's start; the paper's: after SFT (warm-up)
    reference: str | None = None  # π_0; null: the policy's start (with LoRA: the policy without its adapters)
    reward: str = MISSING  # the reward model: a Hub id or the model folder of a run
    scoring: RewardOptions = field(default_factory=RewardOptions)
    reward_baseline: float | None = (
        5.5625  # subtracted from rewards (of the paper's model); null: first iteration's mean
    )
    prompts: str = MISSING  # folder of `data`, or rows with `prompt` or `instruction`, or `chosen` (a transcript)
    max_prompts: int | None = None  # the first so many; null: all
    layout: str = "chat"  # how the model is asked: chat (its chat template) | transcript | lmflow ('###Human: …')
    max_prompt_length: int = 256  # tokens
    overlong: str = "drop"  # prompts of more tokens: drop | truncate (they lose their beginning)
    max_new_tokens: int = 196  # of a response, which otherwise ends with EOS or where the next turn begins
    iterations: int = 40  # in all, those before a restart included
    prompts_per_iteration: int = 512  # one response to each; the next so many, in a new order after the last
    sampling_batch_size: int = 64  # responses generated at once
    epochs: int | None = None  # passes over the responses of an iteration; null: 2, with LoRA 4
    update_batch_size: int = 32  # responses per optimiser step, over all processes; divides prompts_per_iteration
    micro_batch_size: int = 4  # responses per forward and backward of a process; changes nothing but rounding
    learning_rate: float | None = None  # of AdamW without decay; null: 1e-6, with LoRA 1e-5
    lr_schedule: str = "constant"  # constant | linear | cosine, over the iterations
    max_grad_norm: float | None = None  # null: gradients are not clipped
    kl: KLOptions = field(default_factory=KLOptions)
    gamma: float = 1.0  # discount per token, in [0, 1]
    lam: float = 0.95  # λ of the generalised advantage estimate, in [0, 1]
    whitening: str = "iteration"  # advantages get mean 0, variance 1 over an iteration | update (over each mini-batch)
    clip: float = 0.2  # of the ratio π/π_old around 1, above 0
    value_clip: float = 0.2  # of the value around the old one, above 0
    vf_coef: float = 0.1  # weight of the value loss, at least 0
    ratio_threshold: float | None = 10.0  # a mini-batch of a larger mean ratio (or ∞) is skipped, above 1; null: none
    critic_warmup: int = 0  # of the first iterations of this run that train the value head alone
    restart_from: str | None = None  # <run>/iteration-K: its policy goes on from iteration K + 1
    restart_critic: str = "fresh"  # the value head after a restart: fresh (random) | kept
    save_every: int = 1  # iterations from one kept iteration-K/model to the next
    samples: int = 8  # responses of each iteration that are written to samples/
    bf16: bool | None = None  # compute in bfloat16 (weights stay as model.dtype has them); null: on a GPU
    gradient_checkpointing: bool = False  # less memory, a second forward
    logprobs: LogprobsConfig = field(default_factory=LogprobsConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)  # single | ddp
