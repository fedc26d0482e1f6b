"""Batches of pairs: (2·pairs, seq) tensors, chosen rows first, padded to the longest row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor


def pad_rows(
    rows: Sequence[Sequence[int]], value: int, *, side: str = "right", multiple_of: int | None = None
) -> Int[Tensor, "rows seq"]:
    """Pad ``rows`` with ``value`` on the ``right`` or ``left`` to the longest, or to a multiple of ``multiple_of``."""
    length = max(len(row) for row in rows)
    if multiple_of:
        length = -(-length // multiple_of) * multiple_of
    padded = torch.full((len(rows), length), value, dtype=torch.long)
    for index, row in enumerate(rows):
        start = 0 if side == "right" else length - len(row)
        padded[index, start : start + len(row)] = torch.tensor(row, dtype=torch.long)
    return padded


@dataclass(frozen=True)
class PairCollator:
    """Collates tokenised pairs.

    Rows have ``chosen_input_ids`` and ``rejected_input_ids``; with ``*_prompt_length`` the batch has a
    ``completion_mask`` that is 1 on response tokens. Every column named in ``extras`` that the rows have becomes a
    float32 vector (pairs,).
    """

    pad_token_id: int
    extras: tuple[str, ...] = ("p_chosen", "ref_chosen_logps", "ref_rejected_logps")
    pad_to_multiple_of: int | None = None

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return ``input_ids``, ``attention_mask``, ``completion_mask`` (2·pairs, seq) and the extras."""
        ids = [row[f"{side}_input_ids"] for side in ("chosen", "rejected") for row in rows]
        batch = {
            "input_ids": pad_rows(ids, self.pad_token_id, multiple_of=self.pad_to_multiple_of),
            "attention_mask": pad_rows([[1] * len(row) for row in ids], 0, multiple_of=self.pad_to_multiple_of),
        }
        if "chosen_prompt_length" in rows[0]:
            starts = torch.tensor([row[f"{side}_prompt_length"] for side in ("chosen", "rejected") for row in rows])
            positions = torch.arange(batch["input_ids"].shape[1])
            batch["completion_mask"] = (positions >= starts[:, None]).long() * batch["attention_mask"]
        for name in self.extras:
            if name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows], dtype=torch.float32)
        return batch
