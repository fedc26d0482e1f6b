"""The core's merge that each method of ``ama average`` stands for."""

from __future__ import annotations

from typing import Any

from reproalign.ama.average.config import AverageConfig
from reproalign.ama.rules import rules_of
from reproalign.common.errors import UserError
from reproalign.common.merging.config import MergeConfig

ALPHA = 0.2  # on pre: what the paper recommends (Section 6)


def core_config(config: AverageConfig) -> MergeConfig:
    """Return the core's merge; its weights are put in for ``ma`` when the models are open.

    Raises:
        UserError: for a key of the method that is missing or wrong.
    """
    variant = rules_of(config.variant)
    if variant.rounds_steps and config.accumulate is not None:
        raise UserError("accumulate has no meaning for variant=released, which rounds every step; remove it")
    keys = ("output_dir", "embeddings", "tied", "files_from", "shard_size", "threads", "verify", "resume")
    allow = [entry for entry in config.allow or () if entry != "extrapolation"]
    made: dict[str, Any] = {key: getattr(config, key) for key in keys}
    made |= {
        "output": "model",
        "dtype": config.dtype or variant.dtype,
        "accumulate": "output" if variant.rounds_steps else config.accumulate,
    }
    if config.method == "sma":
        return MergeConfig(**made, method="linear", normalize=False, allow=allow, **_moving_average(config))
    if config.post is None:
        raise UserError("post is not set; give the model after RLHF, post=FOLDER")
    if config.method == "graft":
        if config.fraction is None:
            raise UserError("fraction is not set; method=graft needs the share of all entries that are post's")
        if not variant.graft:
            raise UserError("variant=released holds no method=graft; remove one of the two")
        graft: dict[str, Any] = {"base": config.pre, "models": [config.post], "density": config.fraction}
        return MergeConfig(**made, method="ties", trim_scope="model", scale=1.0, allow=allow, **graft)
    if "extrapolation" in (config.allow or ()):
        allow.append("negative")
    models = [config.pre, config.post]
    return MergeConfig(**made, method="linear", models=models, weights=[0.5, 0.5], normalize=False, allow=allow)


def moving_average_weights(count: int, decay: float, reset_every: int | None = None) -> tuple[float, ...]:
    """Return the weights of (θ_0, θ_1, …, θ_T) in a moving average of a training's checkpoints.

    m_t = μ m_{t-1} + (1 - μ) θ_t from m_0 = θ_0, as Elastic Reset keeps it (arXiv 2312.07551, Section 3), so after T
    checkpoints θ_0 weighs μ^T and θ_t (1 - μ) μ^{T-t}. With a reset, m is θ_0 again after every n checkpoints: only
    those since the last one count. The reset of the policy itself belongs to the training.

    Args:
        count: T.
        decay: μ, from 0 to below 1.
        reset_every: n; the average is taken just before a reset that is due.
    """
    since = count if reset_every is None else (count - 1) % reset_every + 1
    recent = [(1 - decay) * decay ** (since - step) for step in range(1, since + 1)]
    return (decay**since, *[0.0] * (count - since), *recent)


def _moving_average(config: AverageConfig) -> dict[str, Any]:
    if config.post is not None:
        raise UserError("post has no meaning for method=sma; give the training's models as checkpoints=[…]")
    if not config.checkpoints:
        raise UserError("checkpoints is not set; give the models of the training, the earliest first")
    if config.decay is None:
        raise UserError(
            "decay is not set; method=sma needs μ, the share of the average that is kept at each checkpoint"
        )
    weights = moving_average_weights(len(config.checkpoints), config.decay, config.reset_every)
    return {"models": [config.pre, *config.checkpoints], "weights": list(weights)}
