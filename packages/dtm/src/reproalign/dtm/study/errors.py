"""``dtm study errors``: what sub-models get wrong together and alone, and which of it the merged model corrects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

from rich.table import Table

from reproalign.common.console import result_console, say
from reproalign.common.errors import UserError
from reproalign.common.files import csv_text, sha256_json, write_json, write_text
from reproalign.common.invocation import Invocation
from reproalign.common.records import Run
from reproalign.dtm.study.config import ErrorsConfig
from reproalign.dtm.study.items import Items, read_items
from reproalign.dtm.study.plots import error_sets


@dataclass(frozen=True)
class ErrorSets:
    r"""Counts over the error sets E_1, …, E_K of sub-models and E of the merged model.

    Attributes:
        sizes: model -> |E_j|.
        merged: |E|.
        shared: |∩_j E_j|.
        union: |∪_j E_j|.
        unique: model -> |U_j|, U_j = E_j \ ∪_{l≠j} E_l.
        corrected: model -> |U_j \ E|, of its own errors those that the merged model gets right.
        shared_kept: |∩_j E_j ∩ E|.
        new: |E \ ∪_j E_j|, which no sub-model gets wrong.
        jaccard: (model, model) -> |E_j ∩ E_l| / |E_j ∪ E_l|; 1 for two empty sets.
    """

    sizes: dict[str, int]
    merged: int
    shared: int
    union: int
    unique: dict[str, int]
    corrected: dict[str, int]
    shared_kept: int
    new: int
    jaccard: dict[tuple[str, str], float]

    @property
    def share_corrected(self) -> float | None:
        """Share of all unique errors that the merged model corrects; None if there is none."""
        total = sum(self.unique.values())
        return sum(self.corrected.values()) / total if total else None

    @property
    def share_kept(self) -> float | None:
        """Share of the shared errors that the merged model keeps; None if there is none."""
        return self.shared_kept / self.shared if self.shared else None


def compare_errors(errors: Mapping[str, AbstractSet[str]], merged: AbstractSet[str]) -> ErrorSets:
    """Return what the error sets of sub-models and of the merged model have in common (R10).

    Args:
        errors: model -> ids of the items it gets wrong; two models or more.
        merged: ids of the items that the merged model gets wrong.
    """
    shared = frozenset.intersection(*map(frozenset, errors.values()))
    union = frozenset[str]().union(*errors.values())
    unique = {
        name: own - frozenset[str]().union(*(other for key, other in errors.items() if key != name))
        for name, own in errors.items()
    }
    jaccard = {}
    for one, other in combinations(errors, 2):
        together = errors[one] | errors[other]
        jaccard[one, other] = len(errors[one] & errors[other]) / len(together) if together else 1.0
    return ErrorSets(
        sizes={name: len(own) for name, own in errors.items()},
        merged=len(merged),
        shared=len(shared),
        union=len(union),
        unique={name: len(own) for name, own in unique.items()},
        corrected={name: len(own - merged) for name, own in unique.items()},
        shared_kept=len(shared & merged),
        new=len(merged - union),
        jaccard=jaccard,
    )


def errors(config: ErrorsConfig, invocation: Invocation) -> None:
    """Compare the errors of sub-models and merged model; write ``errors.json``, ``errors.csv``, ``plots/errors.png``.

    An item is a question of a suite (``suite.samples=true``), wrong if its score is 0, or a held-out row, wrong by
    ``rule``.

    Raises:
        UserError: for fewer than two sub-models, evaluations of other items, or a rule that does not fit.
    """
    if len(config.models) < 2:
        raise UserError("models needs the evaluations of two or more sub-models, as in models=[A,B]")
    items = read_items(config)
    names = _labels(config.models)
    wrong = {name: items.wrong[folder] for name, folder in zip(names, config.models, strict=True)}
    found = compare_errors(wrong, items.wrong[config.merged])
    with Run.open(invocation) as run:
        run.add_fingerprint("data", "items", sha256_json(items.ids), items=len(items.ids))
        _report(found, items, wrong, run)


def _labels(folders: Sequence[str]) -> list[str]:
    """Name models by their folders if these tell them apart, else by whole paths."""
    if len({Path(folder).resolve() for folder in folders}) < len(folders):
        raise UserError(f"models={list(folders)} names one folder twice; name each once")
    names = [Path(folder).name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _report(found: ErrorSets, items: Items, wrong: Mapping[str, AbstractSet[str]], run: Run) -> None:
    table = Table("sub-model", title=f"errors on {len(items.ids)} items ({items.rule})", header_style="bold")
    for name in ("errors", "only its own", "of these corrected by the merge"):
        table.add_column(name, justify="right")
    for name, size in found.sizes.items():
        table.add_row(name, str(size), str(found.unique[name]), _share(found.corrected[name], found.unique[name]))
    pairs = {f"{one} | {other}": value for (one, other), value in found.jaccard.items()}
    facts = {
        **{key: value for key, value in asdict(found).items() if key != "jaccard"},
        "items": len(items.ids),
        "rule": items.rule,
        "share_of_unique_corrected": found.share_corrected,
        "share_of_shared_kept": found.share_kept,
        "jaccard": pairs,
    }
    write_json(run.dir / "errors.json", {**facts, "sets": {name: sorted(own) for name, own in wrong.items()}})
    write_text(run.dir / "errors.csv", _csv(found))
    error_sets(found.unique, found.corrected, found.jaccard, run.dir / "plots" / "errors.png")
    run.set_metrics(facts)
    console = result_console()
    console.print(table)
    console.print(
        f"the merged model makes {found.merged} errors, {found.new} of them new; of {found.shared} errors that all "
        f"sub-models share it keeps {_share(found.shared_kept, found.shared)}, of {sum(found.unique.values())} that "
        f"one alone makes it corrects {_share(sum(found.corrected.values()), sum(found.unique.values()))}; "
        f"{found.union} items are wrong for some sub-model",
    )
    for name, value in pairs.items():
        say(f"Jaccard index, {name}: {value:.3f}")
    say(f"record, errors.json, errors.csv and plot: {run.dir}")


def _share(part: int, whole: int) -> str:
    return f"{part} ({part / whole:.0%})" if whole else "0"


def _csv(found: ErrorSets) -> str:
    rows = [(name, size, found.unique[name], found.corrected[name]) for name, size in found.sizes.items()]
    return csv_text(["model", "errors", "unique", "corrected"], rows)
