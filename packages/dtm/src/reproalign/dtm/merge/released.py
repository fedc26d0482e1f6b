"""What the authors' merging scripts compute: adapters as flat vectors, A and B each on its own.

:func:`aggregate`, :func:`flatten`, :func:`unflatten` and :func:`basic_merging` are ``merge_utils.py``; the TIES
functions are the author's helpers of another repository, which the paper's comparison came from (ERRATA Q31). T is
(models, entries) throughout. Unlike there, no input is changed (Q22), and tensors do not share one storage (Q24).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from reproalign.common.errors import UserError, choose
from reproalign.dtm.merge.config import AGGREGATIONS, DISJOINT

State = Mapping[str, Tensor]
SHARED = "transformer.shared.weight"  # T5's embedding, which its two stacks share
SHARERS = ("transformer.encoder.embed_tokens.weight", "transformer.decoder.embed_tokens.weight")


def normalized(ratios: Sequence[float | int]) -> list[float]:
    """Divide ratios by their sum, ρ_j / Σ ρ (``basic_merge.py``).

    Raises:
        UserError: if they sum to 0.
    """
    total = sum(ratios)
    if total == 0:
        raise UserError(f"weights={list(ratios)} sum to 0 and cannot be shares")
    return [ratio / total for ratio in ratios]


def kept_names(state: State, remove: Sequence[str] = (), keep: Sequence[str] = ()) -> list[str]:
    """Return the names that are merged, in the state's order: without ``remove``; if that is empty, only ``keep``."""
    if remove:
        return [name for name in state if name not in remove]
    return [name for name in state if name in keep] if keep else list(state)


def flatten(state: State, remove: Sequence[str] = (), keep: Sequence[str] = ()) -> Float[Tensor, " entries"]:
    """Concatenate the tensors in plain string order of their names (``layers.10`` before ``layers.2``).

    Mixed dtypes are promoted to a common one.

    Raises:
        UserError: if nothing is left.
    """
    names = sorted(kept_names(state, remove, keep))
    if not names:
        raise UserError("an adapter holds no tensors to merge")
    return parameters_to_vector([state[name] for name in names])


def unflatten(
    vector: Float[Tensor, " entries"], template: State, remove: Sequence[str] = (), keep: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Cut a vector into tensors of the template's names and shapes, sorted by name, in the vector's dtype."""
    names = sorted(kept_names(template, remove, keep))
    parts = vector.split([template[name].numel() for name in names])
    made = {name: part.view(template[name].shape).clone() for name, part in zip(names, parts, strict=True)}
    if SHARED in made:
        made |= {name: made[SHARED].clone() for name in SHARERS}
    return made


def aggregate(
    vectors: Float[Tensor, "models entries"],
    mode: str,
    ratios: Sequence[float | int] | None = None,
    signs: Float[Tensor, " entries"] | None = None,
    *,
    dim: int = 0,
) -> Float[Tensor, " merged"]:
    """Merge the rows of a matrix.

    Args:
        vectors: one row for each model.
        mode: ``mean``, ``sum``, ``median`` (the lower of the two middle ones), ``magnitude`` (the entry of the largest
            magnitude, the first of equal ones, over models whatever ``dim``) or ``weighted``, Σ_j ρ_j T_j, fractions in
            float32: 16-bit rows give a float32 result.
        ratios: ρ of ``weighted``, one for each model, or one for all.
        signs: if given, the result is its magnitude times these.
        dim: that is merged, 0 for models.

    Raises:
        UserError: for an unknown mode, or ratios that are missing or not one for each model.
    """
    choose("aggregation", mode, AGGREGATIONS)
    if mode == "weighted":
        if ratios is None or len(ratios) not in (1, len(vectors)):
            raise UserError(
                f"aggregation=weighted: {ratios} are no weights of {len(vectors)} models; give one for each"
            )
        merged = torch.sum(vectors * torch.tensor(ratios)[:, None], dim=dim)
    elif mode == "magnitude":
        merged = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True)).squeeze(0)
    elif mode == "median":
        merged = vectors.median(dim=dim).values
    else:
        merged = vectors.mean(dim=dim) if mode == "mean" else vectors.sum(dim=dim)
    return merged if signs is None else merged.abs() * signs


def basic_merging(
    mode: str, states: Sequence[State], ratios: Sequence[float | int] | None = None, remove: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Flatten, aggregate, unflatten: every entry of A and of B by itself (R4).

    Tensors are matched by position, under the names of the first state. Whether names and shapes agree is for the
    caller to check (Q24).

    Raises:
        UserError: for states of different sizes, or what :func:`aggregate` refuses.
    """
    vectors = [flatten(state, remove) for state in states]
    if len({len(vector) for vector in vectors}) > 1:
        raise UserError(f"the adapters hold {', '.join(str(len(vector)) for vector in vectors)} entries; they differ")
    return unflatten(aggregate(torch.stack(vectors), mode, ratios), states[0], remove)


def trim(
    vectors: Float[Tensor, "models entries"], density: float | int
) -> tuple[Float[Tensor, "models entries"], Bool[Tensor, "models entries"]]:
    """Keep the entries of each row from its k-th smallest magnitude on, k = p - ⌊density · p⌋, so one more than that.

    Args:
        vectors: T.
        density: share to keep, in [0, 1); above 1 it is a percentage.

    Returns:
        The trimmed rows, and which entries were kept.

    Raises:
        UserError: if k is 0 (a density of 1), which the helper cannot do.
    """
    share = density / 100 if density > 1 else density
    count = vectors.shape[1] - int(vectors.shape[1] * share)
    if count < 1:
        raise UserError(f"density={density}: the authors' helper cannot keep everything; set less, or variant=paper")
    threshold = vectors.abs().kthvalue(count, dim=1, keepdim=True).values
    kept = vectors.abs() >= threshold
    return vectors * kept, kept


def trim_by_norm(
    vectors: Float[Tensor, "models entries"], fraction: float
) -> tuple[Float[Tensor, "models entries"], Bool[Tensor, "models entries"]]:
    """Keep the largest entries of each row until they reach a share of its squared norm, and always the last column.

    The last column is a side effect of the helper's fill value.
    """
    ordered, places = (vectors**2).sort(dim=1, descending=True)
    before = ordered.cumsum(dim=1) - ordered
    reached = before >= fraction * ordered.sum(dim=1, keepdim=True)
    places = places.masked_fill(reached, vectors.shape[1] - 1)
    kept = torch.zeros_like(vectors, dtype=torch.bool).scatter(1, places, True)
    return vectors * kept, kept


def elect_signs(vectors: Float[Tensor, "models entries"], zeros: str = "majority") -> Float[Tensor, " entries"]:
    """Sign of each column's sum; where it is 0, the sign that most columns have, or with ``minority`` the other one."""
    signs = vectors.sum(dim=0).sign()
    majority = signs.sum().sign()
    return torch.where(signs == 0, majority if zeros == "majority" else -majority, signs)


def disjoint(
    vectors: Float[Tensor, "models entries"], mode: str, signs: Float[Tensor, " entries"] | None
) -> Float[Tensor, " entries"]:
    """Merge the entries of each column that agree with its sign; without signs, those that are not 0.

    Args:
        vectors: trimmed T.
        mode: ``dis-mean`` (over what agrees), ``dis-sum``, or ``dis-max`` (largest magnitude, times the sign).
        signs: of the columns; not above 0 keeps negative entries.

    Raises:
        UserError: for an unknown mode, or ``dis-max`` without signs.
    """
    choose("aggregation", mode, DISJOINT)
    agreeing = vectors != 0 if signs is None else torch.where(signs > 0, vectors > 0, vectors < 0)
    selected = vectors * agreeing
    if mode == "dis-max":
        if signs is None:
            raise UserError("aggregation=dis-max needs elected signs")
        return selected.abs().max(dim=0).values * signs
    total = selected.sum(dim=0)
    return total if mode == "dis-sum" else total / agreeing.sum(dim=0).clamp(min=1)


def ties(
    vectors: Float[Tensor, "models entries"],
    *,
    density: float | int = 0.2,
    norm_fraction: float | None = None,
    zeros: str = "majority",
    mode: str = "dis-mean",
    ratios: Sequence[float | int] | None = None,
) -> Float[Tensor, " entries"]:
    """Trim over the whole flattened model, elect signs, merge: the task vector that is added to the base.

    Args:
        vectors: task vectors τ_j.
        density: see :func:`trim`.
        norm_fraction: instead, see :func:`trim_by_norm`.
        zeros: see :func:`elect_signs`.
        mode: of :func:`disjoint`, or of :func:`aggregate` with the elected signs put on the result.
        ratios: of ``weighted``.
    """
    trimmed, _ = trim(vectors, density) if norm_fraction is None else trim_by_norm(vectors, norm_fraction)
    signs = elect_signs(trimmed, zeros)
    return disjoint(trimmed, mode, signs) if mode in DISJOINT else aggregate(trimmed, mode, ratios, signs)
