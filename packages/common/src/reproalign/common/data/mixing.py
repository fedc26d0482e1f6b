"""Mixing data sets in given shares, as the alignment-handbook does."""

from __future__ import annotations

from dataclasses import dataclass

from datasets import Dataset, concatenate_datasets

from reproalign.common.errors import UserError


@dataclass(frozen=True)
class MixPart:
    """One data set of a mixture: the share of its training rows, and its splits in load order."""

    name: str
    fraction: float
    splits: dict[str, Dataset]


def mix_datasets(parts: list[MixPart], *, seed: int = 42, shuffle: bool = True) -> dict[str, Dataset]:
    """Concatenate the first share of every training split, and all test splits whole.

    Splits with "train" in their name are training splits, with "test" test splits. A share keeps ``int(share * rows)``
    rows from the front. Shares are paired with training splits in load order, one of each data set: of several, as
    ``data.sets`` never has them, the release pairs the wrong ones (MMPO ERRATA Q25).

    Args:
        parts: the data sets.
        seed: of the shuffle (numpy's default_rng permutation, in ``datasets``).
        shuffle: shuffle both results.

    Returns:
        ``train`` and ``test``, each only if there are such splits.

    Raises:
        UserError: for a share outside [0, 1] or a split of neither kind.
    """
    train: list[Dataset] = []
    test: list[Dataset] = []
    for part in parts:
        for split, dataset in part.splits.items():
            if "train" in split:
                train.append(dataset)
            elif "test" in split:
                test.append(dataset)
            else:
                raise UserError(
                    f"data.sets: split '{split}' of '{part.name}' has neither 'train' nor 'test' in its name"
                )
    for part in parts:
        if not 0 <= part.fraction <= 1:
            raise UserError(f"data.sets: the share of '{part.name}' is {part.fraction}; it must be between 0 and 1")
    mixed = {}
    if train:
        shares = zip([part.fraction for part in parts], train, strict=False)
        mixed["train"] = concatenate_datasets([rows.select(range(int(share * len(rows)))) for share, rows in shares])
    if test:
        mixed["test"] = concatenate_datasets(test)
    return {name: rows.shuffle(seed=seed) if shuffle else rows for name, rows in mixed.items()}
