"""Batches of token rows, padded to the longest: pairs (chosen rows first), unpaired examples, and labelled rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from reproalign.common.errors import UserError

IGNORED = -100  # the label of a token that is not supervised
FORWARD = ("input_ids", "attention_mask", "completion_mask")


def pad_rows(
    rows: Sequence[Sequence[int]] | Sequence[Sequence[float]],
    value: int | float,
    *,
    side: str = "right",
    multiple_of: int | None = None,
    dtype: torch.dtype = torch.long,
) -> Shaped[Tensor, "rows seq"]:
    """Pad ``rows`` with ``value`` on the ``right`` or ``left`` to the longest, or to a multiple of ``multiple_of``."""
    length = max(len(row) for row in rows)
    if multiple_of:
        length = -(-length // multiple_of) * multiple_of
    padded = torch.full((len(rows), length), value, dtype=dtype)
    for index, row in enumerate(rows):
        start = 0 if side == "right" else length - len(row)
        padded[index, start : start + len(row)] = torch.tensor(row, dtype=dtype)
    return padded


def forward_inputs(batch: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Return what a model is called with for the rows whose columns begin with ``prefix``."""
    return {name: batch[f"{prefix}{name}"] for name in FORWARD}


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id that fills rows up: the pad token's, EOS's if there is none.

    Raises:
        UserError: if there is neither.
    """
    found = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if not isinstance(found, int):
        raise UserError(f"the tokenizer of '{tokenizer.name_or_path}' has neither a pad token nor EOS; give it one")
    return found


@dataclass(frozen=True)
class PairCollator:
    """Collates tokenised pairs.

    Rows have ``chosen_input_ids`` and ``rejected_input_ids``; with ``*_prompt_length`` the batch has a
    ``completion_mask`` that is 1 on response tokens. Every column named in ``extras`` that the rows have becomes a
    float32 vector (pairs,).
    """

    pad_token_id: int
    extras: tuple[str, ...] = ("p_chosen", "margin", "ref_chosen_logps", "ref_rejected_logps")
    pad_to_multiple_of: int | None = None
    padding_side: str = "right"  # left: of dialogues that a reward model reads whole

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return ``input_ids``, ``attention_mask``, ``completion_mask`` (2·pairs, seq) and the extras."""
        sides = [(row, side) for side in ("chosen", "rejected") for row in rows]
        starts = None
        if "chosen_prompt_length" in rows[0]:
            starts = [row[f"{side}_prompt_length"] for row, side in sides]
        ids = [row[f"{side}_input_ids"] for row, side in sides]
        batch = _token_batch(ids, starts, self.pad_token_id, self.pad_to_multiple_of, self.padding_side)
        for name in self.extras:
            if name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows], dtype=torch.float32)
        return batch


@dataclass(frozen=True)
class UnpairedCollator:
    """Collates tokenised examples of unpaired feedback.

    Rows have ``input_ids``, ``prompt_length`` and ``label`` (true: desirable); for KTO's estimate of the KL also
    ``KL_input_ids`` and ``KL_prompt_length`` of a mismatched prompt and completion; with cached reference log-probs
    ``ref_logps`` and ``ref_KL_logps``, one value per completion token.
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return ``input_ids``, ``attention_mask``, ``completion_mask`` (examples, seq), ``label`` (examples,) bool.

        The mismatched rows' columns carry ``KL_`` in front, with a seq of their own; cached log-probs are float32
        (examples, longest completion), 0 behind a completion's end.
        """
        batch: dict[str, Tensor] = {"label": torch.tensor([bool(row["label"]) for row in rows])}
        for prefix in ("", "KL_"):
            if f"{prefix}input_ids" in rows[0]:
                ids = [row[f"{prefix}input_ids"] for row in rows]
                starts = [row[f"{prefix}prompt_length"] for row in rows]
                tokens = _token_batch(ids, starts, self.pad_token_id, self.pad_to_multiple_of)
                batch |= {f"{prefix}{name}": value for name, value in tokens.items()}
            if (name := f"ref_{prefix}logps") in rows[0]:
                batch[name] = pad_rows([row[name] for row in rows], 0.0, dtype=torch.float32)
        return batch


def _token_batch(
    ids: Sequence[Sequence[int]],
    starts: Sequence[int] | None,
    pad_token_id: int,
    multiple_of: int | None,
    side: str = "right",
) -> dict[str, Tensor]:
    batch = {
        "input_ids": pad_rows(ids, pad_token_id, multiple_of=multiple_of, side=side),
        "attention_mask": pad_rows([[1] * len(row) for row in ids], 0, multiple_of=multiple_of, side=side),
    }
    if starts is not None:
        positions = torch.arange(batch["input_ids"].shape[1])
        batch["completion_mask"] = (positions >= torch.tensor(starts)[:, None]).long() * batch["attention_mask"]
    return batch


@dataclass(frozen=True)
class RowCollator:
    """Collates tokenised rows, padded to the longest rounded up to a multiple.

    Attributes:
        pad_token_id: fills up ``input_ids``; ``labels`` are filled up with -100, ``attention_mask`` with 0.
        padding_side: right or left.
        multiple_of: of the length.
    """

    pad_token_id: int
    padding_side: str = "right"
    multiple_of: int = 8

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return ``input_ids``, ``attention_mask`` and ``labels``, each (rows, seq)."""

        def padded(values: list[list[int]], fill: int) -> Tensor:
            return pad_rows(values, fill, side=self.padding_side, multiple_of=self.multiple_of)

        ids = [list(row["input_ids"]) for row in rows]
        return {
            "input_ids": padded(ids, self.pad_token_id),
            "attention_mask": padded([[1] * len(row) for row in ids], 0),
            "labels": padded([list(row["labels"]) for row in rows], IGNORED),
        }
