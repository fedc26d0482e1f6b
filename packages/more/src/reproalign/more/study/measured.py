"""What runs measured, as :mod:`~reproalign.more.study.results` has the paper's numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reproalign.common.errors import UserError
from reproalign.common.evaluation.calibration import ordered_pairs, probability_calibration
from reproalign.common.records.folder import read_record
from reproalign.more.report import DIFFERENCES
from reproalign.more.study.config import StudyConfig
from reproalign.more.study.outliers import check_outliers, outliers
from reproalign.more.study.results import FIVE, ResultKey, Results, Value, mean_value, with_means, with_top
from reproalign.more.study.runs import ALIGNED, Floats, StudiedRun, read_comparison, run_origin

BINS = 10
NAMES = ("accuracy", f"ece_{BINS}", f"ece_{BINS}_calibrated", "reward_mean", "reward_std", "pairs")


def measured_results(runs: Sequence[StudiedRun], config: StudyConfig, bases: Mapping[str, str]) -> Results:
    """Return the numbers of all runs, those of one base and scheme averaged over seeds, with means and ``top``.

    Standard errors are those of the bootstrap over pairs for one run, and of the spread over several. A comparison by
    judge of two aligned models is ``more_against_multitask`` and the like, over the prompts of all such runs together.

    Raises:
        UserError: if nothing was measured by any of them, or for options that are out of range.
    """
    check_outliers(config.outliers)
    found: dict[ResultKey, list[Value]] = {}
    verdicts: dict[tuple[str, str], dict[str, int]] = {}
    for run in runs:
        compared = read_comparison(run)
        if compared is not None:
            _add_verdicts(verdicts, run, compared, bases)
            continue
        for key, value in (*_of_domains(run, config), *_of_answers(run)):
            found.setdefault(key, []).append(value)
    results = {key: mean_value(values) for key, values in found.items()}
    for (base, scheme), counts in verdicts.items():
        results |= _win_rates(base, scheme, counts)
    if runs and not results:
        raise UserError("runs: none of them measured held-out domains, perplexities or win rates")
    return with_means(with_top(results))


def resampled_errors(margins: Floats, resamples: int, seed: int) -> tuple[float, float]:
    """Return the standard errors of accuracy and ECE (ten bins): of the bootstrap over pairs."""
    generator = np.random.default_rng(seed)
    accuracies, errors = [], []
    for _ in range(resamples):
        drawn = margins[generator.integers(0, len(margins), len(margins))]
        accuracies.append(float((drawn > 0).mean()))
        errors.append(probability_calibration(*ordered_pairs(drawn), n_bins=BINS).ece)
    return float(np.std(accuracies)), float(np.std(errors))


def _of_domains(run: StudiedRun, config: StudyConfig) -> Iterator[tuple[ResultKey, Value]]:
    there = (run.folder / DIFFERENCES).is_file()
    for domain, metrics in run.domains.items():
        margins = run.margins.get(domain) if there else None
        known: dict[str, float] = {}
        if margins is not None and len(margins):
            accuracy, ece = resampled_errors(margins, config.resamples, config.seed)
            known = {"accuracy": accuracy, f"ece_{BINS}": ece}
        calibrated = metrics.get(f"ece_{BINS}_calibrated_sd")
        if calibrated is not None:
            known[f"ece_{BINS}_calibrated"] = calibrated
        for name in NAMES:
            if name in metrics:
                yield ResultKey(run.origin.base, run.origin.scheme, domain, name), Value(metrics[name], known.get(name))
        if margins is not None:
            for sign, side in zip(("positive", "negative"), outliers(margins, config.outliers), strict=True):
                name = f"outliers_{sign}"
                yield ResultKey(run.origin.base, run.origin.scheme, domain, name), Value(float(side.count))
                if side.count:
                    yield ResultKey(run.origin.base, run.origin.scheme, domain, f"{name}_mean"), Value(side.mean)


def _of_answers(run: StudiedRun) -> Iterator[tuple[ResultKey, Value]]:
    if run.record.get("verb") != "perplexity":
        return
    for file, metrics in run.record.get("metrics", {}).items():
        domain = next((name for name in FIVE if name in file), file)
        if "answer_perplexity_released" in metrics:  # the published statistic
            value = Value(metrics["answer_perplexity_released"])
            yield ResultKey(run.origin.base, run.origin.scheme, domain, "answer_perplexity"), value


def _add_verdicts(
    verdicts: dict[tuple[str, str], dict[str, int]],
    run: StudiedRun,
    compared: Mapping[str, Any],
    bases: Mapping[str, str],
) -> None:
    """Add up the judge's verdicts on every two files by whose models' answers they hold."""
    origins = [_answers_origin(path, bases) for path in run.record["config"]["responses"]]
    pairs = [(i, j) for i in range(len(origins)) for j in range(i + 1, len(origins))]
    for (i, j), entry in zip(pairs, compared["pairs"].values(), strict=True):
        judged = entry.get("judge")
        if judged is None:
            continue
        first, second = origins[i], origins[j]
        base = first[0] if first[0] == second[0] else f"{first[0]}, {second[0]}"
        counts = verdicts.setdefault((base, f"{first[1]}_against_{second[1]}"), {"wins": 0, "ties": 0, "losses": 0})
        for name in counts:
            counts[name] += int(judged[name])


def _answers_origin(path: str, bases: Mapping[str, str]) -> tuple[str, str]:
    folder = Path(path).expanduser()
    folder = folder if folder.is_dir() else folder.parent
    origin = run_origin(read_record(folder), folder, bases)
    return origin.base, origin.scheme.removeprefix(ALIGNED)


def _win_rates(base: str, scheme: str, counts: Mapping[str, int]) -> Results:
    total = sum(counts.values())
    names = {"gpt4_win": "wins", "gpt4_tie": "ties", "gpt4_lose": "losses"}
    if not total:
        return {}
    shares = {metric: counts[name] / total for metric, name in names.items()}
    return {
        ResultKey(base, scheme, "hh", metric): Value(share, math.sqrt(share * (1 - share) / total))
        for metric, share in shares.items()
    }
