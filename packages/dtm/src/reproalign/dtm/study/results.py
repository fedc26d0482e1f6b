"""Reading back what ``dtm evaluate`` wrote: the measures of a run, its rows, and its tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from reproalign.common.errors import UserError
from reproalign.common.records.handed_on import intact

RESULTS, ROWS, TOKENS = "results.json", "rows.jsonl", "tokens.safetensors"


@dataclass(frozen=True)
class EvaluationRun:
    """A finished ``dtm evaluate`` run.

    Attributes:
        folder: of the run.
        results: ``results.json``.
    """

    folder: Path
    results: dict[str, Any]

    @property
    def loss(self) -> float:
        """Token mean over all rows, in nats."""
        return float(self.results["measures"][0]["loss"])

    @property
    def sources(self) -> dict[str, float]:
        """Source -> token mean, in nats."""
        return {entry["name"]: float(entry["loss"]) for entry in self.results["measures"][1:]}

    def rows(self) -> list[dict[str, Any]]:
        """Return ``rows.jsonl``: index, source, tokens, nll, correct."""
        text = intact(self.folder / ROWS).read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def tokens(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return ids and losses of all supervised tokens, (tokens,).

        Raises:
            UserError: if they were not written.
        """
        path = self.folder / TOKENS
        if not path.is_file():
            raise UserError(f"{self.folder} has no losses of tokens; evaluate again with per_token=true")
        found = load_file(intact(path))
        return found["ids"].astype(np.int64), found["losses"].astype(np.float64)


def read_evaluation(folder: str | Path) -> EvaluationRun:
    """Read the results of a finished ``dtm evaluate`` run.

    Raises:
        UserError: if there are none.
    """
    path = Path(folder).expanduser()
    try:
        results = json.loads(intact(path / RESULTS).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: no {RESULTS} there; give the folder of a finished `dtm evaluate rows=…`") from error
    except ValueError as error:
        raise UserError(f"{path / RESULTS}: not valid JSON ({error})") from error
    if not isinstance(results, dict) or not {"measures", "rows"} <= results.keys():
        raise UserError(f"{path / RESULTS} is not of `dtm evaluate rows=…`; give the folder of such a run")
    return EvaluationRun(path, results)


def check_same_rows(evaluations: Sequence[EvaluationRun], *, tokens: bool = False) -> None:
    """Refuse evaluations of different rows, which cannot be compared.

    Args:
        evaluations: two or more.
        tokens: the token ids must be the same, too.

    Raises:
        UserError: naming two that differ.
    """
    for key, what in [("sha256", "rows"), *([("tokens_sha256", "tokens")] if tokens else [])]:
        first = evaluations[0]
        for other in evaluations[1:]:
            if first.results["rows"][key] != other.results["rows"][key]:
                raise UserError(
                    f"{first.folder} and {other.folder} measured different {what} (by SHA-256); evaluate both on the "
                    "same rows, with the same tokens.* and tokenizer"
                )
