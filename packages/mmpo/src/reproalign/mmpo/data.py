"""Which pairs MMPO trains on, and with which target. Works on rendered data sets (text columns)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from reproalign.common.errors import UserError
from reproalign.mmpo.config import PairRulesConfig, RowRulesConfig, TargetConfig
from reproalign.mmpo.decontaminate import filter_strings, keep_mask, load_problems
from reproalign.mmpo.target import read_soft_labels, target_probabilities, transform_margins

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


def build_targets(dataset: Dataset, target: TargetConfig, *, additive_margin: bool = False) -> Dataset:
    """Add the column ``p_chosen``; swap texts where a soft label says so; filter by margin if asked.

    gamma is taken as it is: 0 means hard labels, as in the release; what a run may be given,
    :func:`~reproalign.mmpo.target.check_gamma` says.

    Args:
        dataset: has ``chosen``, ``rejected``, and the scores if gamma, a threshold or the margin is asked for.
        target: gamma, transform, soft labels, threshold.
        additive_margin: also add the transformed margin as the column ``margin``.

    Raises:
        UserError: if scores are needed and missing, or no pair is left.
    """
    gamma = target.gamma or None
    probabilities = np.ones(len(dataset))
    if gamma is not None or target.filter_threshold is not None or additive_margin:
        scores = _scores(dataset)
        margins = transform_margins(*scores, target)
        probabilities = target_probabilities(margins, gamma)
        if additive_margin:
            dataset = dataset.add_column("margin", margins.tolist())
    dataset = dataset.add_column("p_chosen", probabilities.tolist())
    if target.soft_labels:
        labels = read_soft_labels(target.soft_labels)
        dataset = dataset.map(
            lambda row: _soft_label(row, labels, target.reflect_soft_labels),
            desc="soft labels",
            load_from_cache_file=False,  # what datasets itself has kept is not sealed
        )
    if target.filter_threshold is not None:
        kept = np.flatnonzero(scores[0] - scores[1] > target.filter_threshold)
        dataset = _select(dataset, kept, f"target.filter_threshold={target.filter_threshold}")
    return dataset


def apply_pair_rules(dataset: Dataset, rules: PairRulesConfig, *, split: str, seed: int) -> Dataset:
    """Apply the rules in the release's order: shuffle, ties, sampling over margins, cap per prompt, decontamination.

    Args:
        dataset: rendered pairs; where the release has targets before it decontaminates, these are there already.
        rules: what to apply.
        split: ``train`` or ``evaluation``; sampling is for training pairs, the cap for what ``cap_splits`` says.
        seed: of sampling and of the random cap.

    Raises:
        UserError: for unusable rules, or if no pair is left.
    """
    dataset = shuffle_rows(dataset, rules)
    if rules.drop_ties:
        chosen, rejected = _scores(dataset)
        dataset = _select(dataset, np.flatnonzero(chosen != rejected), "pairs.drop_ties")
    if rules.sampling != "none" and split == "train":
        if rules.sampling_size is None:
            raise UserError(f"pairs.sampling={rules.sampling} needs pairs.sampling_size, the number of pairs to draw")
        chosen, rejected = _scores(dataset)
        margins = np.abs(chosen - rejected)
        edges = quantile_edges(margins, rules.sampling_bins) if rules.sampling_edges is None else rules.sampling_edges
        drawn = sample_by_margin(margins, edges, rules.sampling_size, mode=rules.sampling, seed=seed)
        dataset = _select(dataset, drawn, "pairs.sampling")
    if rules.cap_per_prompt is not None and (split == "train" or rules.cap_splits == "both"):
        kept = cap_per_prompt(dataset["prompt"][:], rules.cap_per_prompt, mode=rules.cap_mode, seed=seed)
        dataset = dataset.select(kept)
    return without_contamination(dataset, rules, "chosen", "pairs.decontaminate")


def shuffle_rows(dataset: Dataset, rules: RowRulesConfig) -> Dataset:
    """Return the rows permuted by ``shuffle_seed`` (numpy's default_rng, in ``datasets``), as the alignment-handbook
    does with 42 for a single data set too; in their order if it is null.
    """
    if rules.shuffle_seed is None:
        return dataset
    return dataset.shuffle(seed=rules.shuffle_seed)


def without_contamination(dataset: Dataset, rules: RowRulesConfig, column: str, key: str) -> Dataset:
    """Drop the rows whose ``column`` holds a HumanEval problem or solution, if ``rules.decontaminate`` asks for it.

    Raises:
        UserError: if HumanEval cannot be loaded, or no row is left.
    """
    if not rules.decontaminate:
        return dataset
    strings = filter_strings(load_problems(rules.decontaminate, key), fix_whitelist=rules.decontaminate_fix_whitelist)
    return _select(dataset, np.flatnonzero(keep_mask(dataset[column][:], strings)), key)


def sample_by_margin(
    margins: Floats, edges: list[float] | Floats, size: int, *, mode: str = "uniform", seed: int = 0
) -> Indices:
    """Draw pairs by the size of their margin.

    Bins are right-open, [e_k, e_{k+1}), the last one closed; margins outside are never drawn. ``uniform``: equal quotas
    for non-empty bins; a bin with fewer gives all it has, and what it lacks is divided equally over the others until
    nothing changes. ``proportional``: largest-remainder quotas of the bins' frequencies. Within a bin the first rows of
    a seeded permutation are taken. The original order is kept.

    Args:
        margins: m = |s_w - s_l|.
        edges: increasing bin edges, at least two.
        size: number of pairs to draw; all of them if there are fewer.
        mode: ``uniform`` or ``proportional``.
        seed: of the permutation.

    Returns:
        Sorted indices.

    Raises:
        UserError: for edges that do not increase.
    """
    edges = np.asarray(edges, dtype=np.float64)
    if len(edges) < 2 or not (np.diff(edges) > 0).all():
        raise UserError(f"pairs.sampling_edges must be at least two increasing numbers, got {edges.tolist()}")
    bins = np.searchsorted(edges, margins, side="right") - 1
    bins[margins == edges[-1]] = len(edges) - 2
    counts = np.bincount(bins[(bins >= 0) & (bins < len(edges) - 1)], minlength=len(edges) - 1)
    size = min(size, int(counts.sum()))
    quotas = uniform_quotas(counts, size) if mode == "uniform" else proportional_quotas(counts, size)
    order = np.random.default_rng(seed).permutation(len(margins))
    drawn = [order[bins[order] == index][:quota] for index, quota in enumerate(quotas)]
    return np.sort(np.concatenate(drawn))


def uniform_quotas(counts: Indices, size: int) -> Indices:
    """Divide ``size`` equally over bins that hold ``counts``; the rest of a division goes to the lowest bins."""
    quotas = np.zeros_like(counts)
    while (left := size - int(quotas.sum())) > 0 and len(room := np.flatnonzero(quotas < counts)):
        # Bins with room are level, so what does not divide can only be given out singly, at the very end.
        if left < len(room):
            quotas[room[:left]] += 1
        else:
            quotas[room] = np.minimum(quotas[room] + left // len(room), counts[room])
    return quotas


def proportional_quotas(counts: Indices, size: int) -> Indices:
    """Divide ``size`` in proportion to ``counts`` by largest remainders (ties: lower bin first)."""
    exact = size * counts / counts.sum()
    quotas: Indices = np.floor(exact).astype(np.int64)
    rest = size - int(quotas.sum())
    quotas[np.argsort(-(exact - quotas), kind="stable")[:rest]] += 1
    return quotas


def quantile_edges(margins: Floats, bins: int) -> Floats:
    """Return the edges of ``bins`` quantile bins, fewer where margins are tied."""
    edges = np.unique(np.quantile(margins, np.linspace(0, 1, bins + 1)))
    return edges if len(edges) > 1 else np.array([edges[0], edges[0] + 1.0])


def cap_per_prompt(prompts: list[str], limit: int, *, mode: str = "first", seed: int = 0) -> list[int]:
    """Return the indices of at most ``limit`` rows per prompt (stripped of surrounding white space), in order.

    Args:
        prompts: rendered prompts.
        limit: rows to keep of each.
        mode: ``first`` occurrences (released), or ``random`` ones.
        seed: of the random choice.
    """
    order = np.arange(len(prompts)) if mode == "first" else np.random.default_rng(seed).permutation(len(prompts))
    seen: dict[str, int] = {}
    kept = []
    for index in order.tolist():
        key = prompts[index].strip()
        seen[key] = seen.get(key, 0) + 1
        if seen[key] <= limit:
            kept.append(index)
    return sorted(kept)


def _soft_label(row: Mapping[str, Any], labels: dict[str, float], reflect: bool) -> dict[str, Any]:
    p = labels.get(row["prompt_id"], row["p_chosen"])
    if row["prompt_id"] in labels and p < 0.5 and reflect:
        return {"p_chosen": 1 - p, "chosen": row["rejected"], "rejected": row["chosen"]}
    return {"p_chosen": p, "chosen": row["chosen"], "rejected": row["rejected"]}


def _scores(dataset: Dataset) -> tuple[Floats, Floats]:
    """Return both score columns; the first row without scores is an error."""
    for number, row in enumerate(dataset.select_columns(["score_chosen", "score_rejected"]), start=1):
        if row["score_chosen"] is None:
            raise UserError(
                f"pair {number} has no scores, which target.gamma and the margin rules need; give score_chosen and "
                "score_rejected, or set target.gamma=null"
            )
    chosen, rejected = (np.asarray(dataset[name][:], dtype=np.float64) for name in ("score_chosen", "score_rejected"))
    return chosen, rejected


def _select(dataset: Dataset, kept: Any, rule: str) -> Dataset:
    if not len(kept):
        what = "row" if rule.startswith("rows.") else "pair"
        raise UserError(f"{rule} leaves no {what} of {len(dataset)}; loosen it")
    return dataset.select(kept)
