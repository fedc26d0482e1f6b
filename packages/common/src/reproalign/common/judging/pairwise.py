"""PairRM as a judge of two models' responses: every instruction in both orders, resumable, and what the logits come to.

Two win rates come of it. The first is an API judge's: in each order the sign of the logit is the verdict, and an
instruction whose verdict changes with the order is a tie. The second takes the mean logit of an instruction,

    l = (l(first, second) - l(second, first)) / 2,

as llm-blender does when it compares: the first response wins where l > 0, and ties are exact. With ``orders=one`` every
instruction is compared once, and there is the one win rate of those verdicts, as AMA's release has it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from rich.table import Table

from reproalign.common.console import track
from reproalign.common.errors import UserError, first_line
from reproalign.common.files import write_text
from reproalign.common.journal import growing
from reproalign.common.judging.ask import SIDES, Bout, ShownKey, entry_line, kept_entries, win_table, write_verdicts
from reproalign.common.judging.config import PairRMConfig
from reproalign.common.judging.verdict import WinRate, one_order_rate, win_rate
from reproalign.common.models.load import model_path
from reproalign.common.records import Run, fingerprint_folder

_FILES = ["config.json", "model*.safetensors*", "tokenizer*.json", "special_tokens_map.json", "added_tokens.json"]


class PairwiseJudge:
    """PairRM, loaded from a configuration, and where it lies."""

    def __init__(self, config: PairRMConfig) -> None:
        """Load the model, from the Hub if ``config.model`` is no folder.

        Raises:
            UserError: if there is none, or it is not PairRM.
        """
        import torch

        from reproalign.common.judging.pairrm_files import load_pairrm

        self.config = config
        self.folder = pairrm_folder(config)
        self.model = load_pairrm(self.folder, getattr(torch, config.dtype), f"pairrm.model={config.model}")

    def add_fingerprint(self, run: Run) -> None:
        """Record the weights."""
        sha256 = fingerprint_folder(self.folder)
        run.add_fingerprint("weights", "pairrm", sha256, name=self.config.model, revision=self.config.revision)

    def collect_logits(self, bouts: Sequence[Bout], path: Path) -> dict[ShownKey, float]:
        """Return the logits of all bouts in the orders asked for, above 0 where the response shown first is better.

        ``path`` grows batch by batch, and those that it holds are not computed again. Batches are made of all bouts,
        longest first, so that a resumed run gives the bits of one that never stopped.

        Raises:
            UserError: if ``path`` is about other instructions, or a logit is not finite.
        """
        logits = kept_entries(path, bouts, "logit", float)
        encoded = {key: self.model.encode(*texts) for key, texts in _shown(bouts, self.config.orders).items()}
        order = sorted(encoded, key=lambda key: len(encoded[key]), reverse=True)
        ends = list(accumulate(batch_sizes(len(order), self.config.batch_size), initial=0))
        batches = [order[start:end] for start, end in pairwise(ends)]
        todo = [batch for batch in batches if any(key not in logits for key in batch)]
        with growing(path) as append:
            for batch in track(todo, "comparing", shown=bool(todo)):
                found = self.model.logits([encoded[key] for key in batch])
                if not found.isfinite().all():
                    raise UserError(
                        f"pairrm.dtype={self.config.dtype}: a logit of {self.config.model} is not finite; choose "
                        "another dtype, such as float32"
                    )
                new = {key: value for key, value in zip(batch, found.tolist(), strict=True) if key not in logits}
                logits |= new
                append("".join(entry_line(key, bouts, logit=value) for key, value in new.items()))
        return logits


def pairrm_folder(config: PairRMConfig) -> Path:
    """Return the folder of ``config.model``, fetched from the Hub unless it is one.

    Raises:
        UserError: if there is no such folder, or the Hub does not give it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    name = model_path(str(config.model), "pairrm.model")
    if Path(name).is_dir():
        if config.revision:
            raise UserError(f"pairrm.revision={config.revision} is for the Hub, and pairrm.model={name} is a folder")
        return Path(name)
    try:
        return Path(snapshot_download(name, revision=config.revision, allow_patterns=_FILES))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = first_line(error)
        raise UserError(f"pairrm.model={name}: no such folder, and the Hub does not give it ({reason})") from error


def read_logits(
    logits: Mapping[ShownKey, float], bouts: Sequence[Bout], path: Path, confidence: float, config: PairRMConfig
) -> tuple[WinRate, WinRate | None]:
    """Read the verdicts in the logits, write them to ``path``, and return what they come to.

    Returns:
        By the verdict in each order, and by the mean logit of both, None where there is one order; see the module.
    """
    if config.orders == "one":
        return _read_one_order(logits, bouts, path, confidence, config.ties), None
    means = [(logits[index, SIDES[0]] - logits[index, SIDES[1]]) / 2 for index in range(len(bouts))]
    columns = [
        {"logits": [logits[index, side] for side in SIDES], "mean_logit": mean} for index, mean in enumerate(means)
    ]
    verdicts = {key: logit_verdict(value) for key, value in logits.items()}
    by_order = write_verdicts(verdicts, bouts, path, confidence, columns)
    return by_order, win_rate([(logit_verdict(mean), logit_verdict(-mean)) for mean in means], confidence)


def _read_one_order(
    logits: Mapping[ShownKey, float], bouts: Sequence[Bout], path: Path, confidence: float, ties: str
) -> WinRate:
    lines, verdicts = [], []
    for index, bout in enumerate(bouts):
        logit = logits[index, SIDES[0]]
        verdicts.append(logit_verdict(logit, ties))
        row = {"index": index, "instruction": bout.instruction, "score": verdicts[-1], "logit": logit}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))
    return one_order_rate(verdicts, confidence)


def batch_sizes(count: int, most: int) -> list[int]:
    """Return the sizes of ⌊count / most⌋ + 1 batches that differ by one at most, the larger ones first.

    None is above ``most``; AMA's release divides its comparisons so.
    """
    batches = count // most + 1
    return [count // batches + (place < count % batches) for place in range(batches)]


def mean_logit_metrics(result: WinRate | None) -> dict[str, Any] | None:
    """Return what a record holds of the win rate by the mean logit; None where there is none."""
    if result is None:
        return None
    return {name: getattr(result, name) for name in ("wins", "ties", "losses", "win_rate", "low", "high")}


def pairwise_table(by_order: WinRate, by_mean: WinRate | None, title: str, count: int, confidence: float) -> Table:
    """Return the table of an API judge with the win rate by the mean logit added."""
    if by_mean is None:
        return win_table(by_order, title, count, confidence, "one order")
    table = win_table(by_order, title, count, confidence)
    interval = f"[{by_mean.low:.4f}, {by_mean.high:.4f}]"
    table.add_row("win rate by the mean logit", f"{by_mean.win_rate:.4f} {interval} at {confidence:.0%}")
    return table


def _shown(bouts: Sequence[Bout], orders: str) -> dict[ShownKey, tuple[str, str, str]]:
    sides = SIDES if orders == "both" else SIDES[:1]
    return {
        (index, side): (
            bout.instruction,
            *((bout.first, bout.second) if side == SIDES[0] else (bout.second, bout.first)),
        )
        for index, bout in enumerate(bouts)
        for side in sides
    }


def logit_verdict(logit: float, ties: str = "half") -> float:
    """Return what a logit gives the response shown first: 1 above 0, 0 below; at 0 exactly 1/2, or 0 with ties=loss."""
    return 0.5 if logit == 0 and ties == "half" else float(logit > 0)
