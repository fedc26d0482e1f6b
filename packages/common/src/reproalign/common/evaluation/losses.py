"""Losses of tokenised rows under a model: in fixed batches, shared among processes, resumable batch by batch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from torch import Tensor

from reproalign.common.console import progress
from reproalign.common.errors import UserError
from reproalign.common.generation.sampling import shares
from reproalign.common.journal import growing, keep_lines, recover_lines, sums_of
from reproalign.common.logprobs.scoring import token_losses
from reproalign.common.text.collate import IGNORED, RowCollator


@dataclass(frozen=True)
class RowLoss:
    """What was measured of one row.

    Attributes:
        place: in the tokenised rows.
        tokens: supervised ones.
        nll: sum of their losses, in nats.
        correct: of them those that greedy decoding would have chosen.
        width: tokens of the batch it was in, padding included.
        ids: the supervised tokens, if asked for.
        losses: theirs, in nats, likewise.
    """

    place: int
    tokens: int
    nll: float
    correct: int
    width: int
    ids: list[int] | None = None
    losses: list[float] | None = None


@dataclass(frozen=True)
class LossScorer:
    """A loaded model, asked for the losses of a batch.

    Attributes:
        model: answers ``completion_mask`` (:func:`reproalign.common.logprobs.model.install_completion_logps`).
        collate: rows -> batch.
        chunk_size: tokens whose logits exist at once; None: by the vocabulary.
        per_token: keep ids and losses of every token.
    """

    model: Any
    collate: RowCollator
    chunk_size: int | None = None
    per_token: bool = False

    @torch.no_grad()
    def __call__(self, rows: Sequence[dict[str, Any]], places: Sequence[int]) -> list[RowLoss]:
        """Return the losses of ``rows``, whose places are ``places``."""
        batch = {name: tensor.to(self.model.device) for name, tensor in self.collate(rows).items()}
        labels = batch.pop("labels")
        supervised = labels != IGNORED
        if self.collate.padding_side == "left":  # else padding would move the positions
            batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp_min(0)
        states = self.model(**batch, completion_mask=supervised, head_states=True, use_cache=False)
        scored = supervised[:, 1:]
        targets = labels[:, 1:][scored]
        losses, greedy = token_losses(states, targets, chunk_size=self.chunk_size)
        return list(self._by_row(places, targets.cpu(), losses.cpu(), greedy.cpu(), scored.sum(1).tolist(), labels))

    def _by_row(
        self, places: Sequence[int], targets: Tensor, losses: Tensor, greedy: Tensor, counts: list[int], labels: Tensor
    ) -> Iterator[RowLoss]:
        parts = zip(*(tensor.split(counts) for tensor in (targets, losses, greedy)), strict=True)
        for place, (ids, values, hits) in zip(places, parts, strict=True):
            nll, correct = float(values.double().sum()), int(hits.sum())
            kept = (ids.tolist(), values.tolist()) if self.per_token else (None, None)
            yield RowLoss(place, len(ids), nll, correct, labels.shape[1], *kept)


def batch_order(lengths: Sequence[int], *, sort: bool) -> list[int]:
    """Return the order in which rows are put into batches: the longest first, so that little is padded; or as it is."""
    return np.argsort(-np.asarray(lengths), kind="stable").tolist() if sort else list(range(len(lengths)))


def measure(
    rows: Dataset, folder: Path, load: Callable[[], LossScorer], *, batch_size: int, sort: bool, state: PartialState
) -> list[RowLoss]:
    """Return the losses of all rows, in their order, on the first process, and none on the others.

    Batches are the same for any number of processes and dealt to them in turns. ``.losses-<process>.jsonl`` in
    ``folder`` grows batch by batch; what is there is not computed again.

    Args:
        rows: ``input_ids`` and ``labels``.
        folder: of the run.
        load: makes the scorer; called only if there is something left to do.
        batch_size: rows of a batch.
        sort: by length; otherwise batches are consecutive rows.
        state: of the processes.

    Raises:
        UserError: if the folder holds losses of other rows.
    """
    order = batch_order([len(ids) for ids in rows["input_ids"]], sort=sort)
    dealt = [[order[index] for index in share] for share in shares(len(order), batch_size, state.num_processes)]
    paths = [folder / f".losses-{rank}.jsonl" for rank in range(state.num_processes)]
    _measure_share(rows, dealt[state.process_index], paths[state.process_index], load, batch_size, state)
    state.wait_for_everyone()
    if not state.is_main_process:
        return []
    found = [loss for path, share in zip(paths, dealt, strict=True) for loss in _read_done(path, share)]
    return sorted(found, key=lambda loss: loss.place)


def remove_parts(folder: Path) -> None:
    """Remove the files that :func:`measure` left, once what they hold is written elsewhere."""
    for path in folder.glob(".losses-*.jsonl"):
        path.unlink()
        sums_of(path).unlink(missing_ok=True)


def _measure_share(
    rows: Dataset, places: list[int], path: Path, load: Callable[[], LossScorer], batch_size: int, state: PartialState
) -> None:
    done = len(_read_done(path, places))
    whole = done if done == len(places) else done // batch_size * batch_size
    if whole < done:  # a batch that was not written to its end is computed again
        keep_lines(path, whole)
    if whole == len(places):
        return
    scorer = load()
    with growing(path) as write, progress(shown=state.is_main_process) as bar:
        task = bar.add_task("measuring losses", total=len(places), completed=whole)
        for start in range(whole, len(places), batch_size):
            part = places[start : start + batch_size]
            losses = scorer([rows[place] for place in part], part)
            write("".join(json.dumps(asdict(loss)) + "\n" for loss in losses))
            bar.advance(task, len(part))


def _read_done(path: Path, places: Sequence[int]) -> list[RowLoss]:
    done = []
    for number, line in enumerate(recover_lines(path)):
        try:
            loss = RowLoss(**json.loads(line))
            fits = number < len(places) and loss.place == places[number]
        except (ValueError, TypeError):
            fits = False
        if not fits:
            raise UserError(f"{path} line {number + 1}: not a loss of this run; choose another output_dir")
        done.append(loss)
    return done
