"""Options of ``ama align ppo``."""

from __future__ import annotations

from dataclasses import dataclass

from reproalign.ama.frontier.config import RewardOptions
from reproalign.common.config.launch import LaunchConfig
from reproalign.common.config.model import LogprobsConfig, ModelConfig
from reproalign.common.config.text import LAYOUTS
from reproalign.common.options import option, output_dir, section, seed
from reproalign.common.options.shared import RESUME


@dataclass
class KLOptions:
    """The penalty of leaving π_0: η of the shaped reward r - η log(π/π_0)."""

    coef: float = option(0.1, help="η; the paper's series are 0.05, 0.1 and 0.2", at_least=0)
    controller: str = option(
        "fixed", help="of η", choices={"fixed": "", "adaptive": "TRL's: η follows the KL towards the target"}
    )
    target: float = option(6.0, help="adaptive: KL of a response", unit="nats", above=0)
    horizon: int = option(10_000, help="adaptive: responses over which η adapts", at_least=1)


@dataclass
class PPOConfig:
    """``align ppo``: proximal policy optimisation of responses against a reward model, with a KL penalty."""

    output_dir: str = output_dir()
    seed: int = seed(help="seed of the prompts' order, the responses, the mini-batches and the value head")
    resume: str = option("auto", **RESUME)
    on_bad_checkpoint: str = option(
        "fallback",
        help="what to do with a checkpoint that cannot be read",
        choices={"fallback": "use the last good one", "stop": ""},
    )
    model: ModelConfig = section(ModelConfig, help="the policy's start; the paper's: after SFT (warm-up)")
    reference: str | None = option(
        None, help="π_0", null="the policy's start (with LoRA: the policy without its adapters)"
    )
    reward: str = option(help="the reward model: a Hub id or the model folder of a run")
    scoring: RewardOptions = section(RewardOptions)
    reward_baseline: float | None = option(
        5.5625, help="subtracted from rewards (of the paper's model)", null="first iteration's mean"
    )
    prompts: str = option(help="folder of `data`, or rows with `prompt` or `instruction`, or `chosen` (a transcript)")
    max_prompts: int | None = option(None, help="the first so many", at_least=1, null="all")
    layout: str = option("chat", help="how the model is asked", choices=LAYOUTS)
    max_prompt_length: int = option(256, help="tokens", unit="tokens", at_least=1)
    overlong: str = option(
        "drop", help="prompts of more tokens", choices={"drop": "", "truncate": "they lose their beginning"}
    )
    max_new_tokens: int = option(
        196,
        help="of a response, which otherwise ends with EOS or where the next turn begins",
        unit="tokens",
        at_least=1,
    )
    iterations: int = option(40, help="in all, those before a restart included", at_least=1)
    prompts_per_iteration: int = option(
        512, help="one response to each; the next so many, in a new order after the last", at_least=1
    )
    sampling_batch_size: int = option(64, help="responses generated at once", at_least=1)
    epochs: int | None = option(
        None, help="passes over the responses of an iteration", at_least=1, null="2, with LoRA 4"
    )
    update_batch_size: int = option(
        32, help="responses per optimiser step, over all processes; divides prompts_per_iteration", at_least=1
    )
    micro_batch_size: int = option(
        4, help="responses per forward and backward of a process; changes nothing but rounding", at_least=1
    )
    learning_rate: float | None = option(None, help="of AdamW without decay", above=0, null="1e-6, with LoRA 1e-5")
    lr_schedule: str = option(
        "constant", help="of the learning rate over the iterations", choices=("constant", "linear", "cosine")
    )
    max_grad_norm: float | None = option(
        None, help="gradients of a larger norm are scaled down to it", above=0, null="gradients are not clipped"
    )
    kl: KLOptions = section(KLOptions)
    gamma: float = option(1.0, help="discount per token", at_least=0, at_most=1)
    lam: float = option(0.95, help="λ of the generalised advantage estimate", at_least=0, at_most=1)
    whitening: str = option(
        "iteration",
        help="over what advantages get mean 0 and variance 1",
        choices={"iteration": "", "update": "each mini-batch"},
    )
    clip: float = option(0.2, help="of the ratio π/π_old around 1", above=0)
    value_clip: float = option(0.2, help="of the value around the old one", above=0)
    vf_coef: float = option(0.1, help="weight of the value loss", at_least=0)
    ratio_threshold: float | None = option(
        10.0, help="a mini-batch of a larger mean ratio (or ∞) is skipped", above=1, null="none is"
    )
    critic_warmup: int = option(
        0, help="of the first iterations of this run that train the value head alone", at_least=0
    )
    restart_from: str | None = option(
        None, help="<run>/iteration-K: its policy goes on from iteration K + 1", null="from the start"
    )
    restart_critic: str = option(
        "fresh", help="the value head after a restart", choices={"fresh": "random", "kept": ""}
    )
    save_every: int = option(1, help="iterations from one kept iteration-K/model to the next", at_least=1)
    samples: int = option(8, help="responses of each iteration that are written to samples/", at_least=0)
    bf16: bool | None = option(None, help="compute in bfloat16 (weights stay as model.dtype has them)", null="on a GPU")
    gradient_checkpointing: bool = option(False, help="less memory, a second forward")
    logprobs: LogprobsConfig = section(LogprobsConfig)
    launch: LaunchConfig = section(LaunchConfig, help="single | ddp")
