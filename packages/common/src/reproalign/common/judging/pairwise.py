"""PairRM as a judge of two models' responses: every instruction in both orders, resumable, and what the logits come to.

Two win rates come of it. The first is an API judge's: in each order the sign of the logit is the verdict, and an
instruction whose verdict changes with the order is a tie. The second takes the mean logit of an instruction,

    l = (l(first, second) - l(second, first)) / 2,

as llm-blender does when it compares: the first response wins where l > 0, and ties are exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.progress import track
from rich.table import Table

from reproalign.common.errors import UserError, first_line
from reproalign.common.judging.ask import SIDES, Bout, Key, entry_line, kept_entries, win_table, write_verdicts
from reproalign.common.judging.config import PairRMConfig
from reproalign.common.judging.verdict import WinRate, win_rate
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

    def collect_logits(self, bouts: Sequence[Bout], path: Path) -> dict[Key, float]:
        """Return the logits of all bouts in both orders, above 0 where the response shown first is better.

        ``path`` grows batch by batch, and those that it holds are not computed again. Batches are made of all bouts,
        longest first, so that a resumed run gives the bits of one that never stopped.

        Raises:
            UserError: if ``path`` is about other instructions, or a logit is not finite.
        """
        logits = kept_entries(path, bouts, "logit", float)
        encoded = {key: self.model.encode(*texts) for key, texts in _both_orders(bouts).items()}
        order = sorted(encoded, key=lambda key: len(encoded[key]), reverse=True)
        size = self.config.batch_size
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        todo = [batch for batch in batches if any(key not in logits for key in batch)]
        with path.open("a", encoding="utf-8") as stream:
            for batch in track(todo, description="comparing", disable=not todo):
                found = self.model.logits([encoded[key] for key in batch])
                if not found.isfinite().all():
                    raise UserError(
                        f"pairrm.dtype={self.config.dtype}: a logit of {self.config.model} is not finite; choose "
                        "another dtype, such as float32"
                    )
                new = {key: value for key, value in zip(batch, found.tolist(), strict=True) if key not in logits}
                logits |= new
                stream.write("".join(entry_line(key, bouts, logit=value) for key, value in new.items()))
                stream.flush()
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
    logits: Mapping[Key, float], bouts: Sequence[Bout], path: Path, confidence: float
) -> tuple[WinRate, WinRate]:
    """Read the verdicts in both orders' logits, write them to ``path``, and return what they come to.

    Returns:
        By the verdict in each order, and by the mean logit of both; see the module.
    """
    means = [(logits[index, SIDES[0]] - logits[index, SIDES[1]]) / 2 for index in range(len(bouts))]
    columns = [
        {"logits": [logits[index, side] for side in SIDES], "mean_logit": mean} for index, mean in enumerate(means)
    ]
    verdicts = {key: _verdict(value) for key, value in logits.items()}
    by_order = write_verdicts(verdicts, bouts, path, confidence, columns)
    return by_order, win_rate([(_verdict(mean), _verdict(-mean)) for mean in means], confidence)


def mean_logit_metrics(result: WinRate) -> dict[str, Any]:
    """Return what a record holds of the win rate by the mean logit."""
    return {name: getattr(result, name) for name in ("wins", "ties", "losses", "win_rate", "low", "high")}


def pairwise_table(by_order: WinRate, by_mean: WinRate, title: str, count: int, confidence: float) -> Table:
    """Return the table of an API judge with the win rate by the mean logit added."""
    table = win_table(by_order, title, count, confidence)
    interval = f"[{by_mean.low:.4f}, {by_mean.high:.4f}]"
    table.add_row("win rate by the mean logit", f"{by_mean.win_rate:.4f} {interval} at {confidence:.0%}")
    return table


def _both_orders(bouts: Sequence[Bout]) -> dict[Key, tuple[str, str, str]]:
    return {
        (index, side): (bout.instruction, *texts)
        for index, bout in enumerate(bouts)
        for side, texts in zip(SIDES, ((bout.first, bout.second), (bout.second, bout.first)), strict=True)
    }


def _verdict(logit: float) -> float:
    """Return what a logit gives the response shown first: 1, 1/2 at 0 exactly, or 0."""
    return 0.5 if logit == 0 else float(logit > 0)
