"""Sums over responses of Ra-DPO as released with ``is_cal_risk_distribution_logps=true`` (ERRATA Q2)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from reproalign.common.logprobs.chunks import chunks, positions_at_once, statistics_dtype
from reproalign.common.logprobs.head_states import HeadStates, log_softmax_of
from reproalign.common.logprobs.plain import token_statistics
from reproalign.radpo.risk import ReleasedTail, released_distribution

SUMS = ("replaced_logps", "replaced_ref_logps", "risk", "logps", "ref_logps", "forward_kl")


def replaced_statistics(
    risk: ReleasedTail,
    logits: Float[Tensor, "rows seq vocab"],
    batch: Mapping[str, Tensor],
    reference: HeadStates,
    chunk_size: int | None = None,
) -> dict[str, Float[Tensor, " rows"]]:
    """Return the sums named in ``SUMS``, in nats; gradients reach the first three.

    Args:
        risk: level, and whether the vocabulary is split.
        logits: of the policy.
        batch: ``input_ids`` and ``completion_mask``, (rows, seq).
        reference: of the positions that predict completion tokens.
        chunk_size: positions whose distributions exist at once; None: by the vocabulary and the kind of device.
    """
    scored = batch["completion_mask"][:, 1:].bool()
    policy, targets = logits[:, :-1][scored], batch["input_ids"][:, 1:][scored]

    def of_chunk(logits: Tensor, part: slice) -> Tensor:
        logits, ref_logps = logits.to(statistics_dtype(logits)), log_softmax_of(reference, part)
        replaced = released_distribution(logits, ref_logps, targets[part], risk.level, risk.split)
        with torch.no_grad():
            true = token_statistics(logits, ref_logps, targets[part])
        return torch.stack([*replaced, *(true[name] for name in SUMS[3:])], dim=1)

    size = positions_at_once(chunk_size, policy.shape[1], policy.device)
    found = [checkpoint(of_chunk, policy[part], part, use_reentrant=False) for part in chunks(len(targets), size)]
    per_token = torch.cat(found)
    places = scored[..., None].expand(*scored.shape, len(SUMS))
    sums = per_token.new_zeros(places.shape).masked_scatter(places, per_token).sum(1)
    return dict(zip(SUMS, sums.unbind(1), strict=True))
