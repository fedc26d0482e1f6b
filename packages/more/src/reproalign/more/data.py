"""From the domains' rows to what the trainers read.

Rows -> items -> responses with scores (:mod:`~reproalign.more.items`) -> token ids
(:mod:`reproalign.common.reward.reading`), kept on disk -> groups or a mixture (:mod:`~reproalign.more.groups`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from datasets import Dataset, Features, Sequence, Value
from rich.table import Table

from reproalign.common.console import result_console
from reproalign.common.data.cache import fingerprint_dataset, map_cached
from reproalign.common.data.load import check_sets, load_set
from reproalign.common.errors import UserError, choose
from reproalign.common.records import Run
from reproalign.common.reward.reading import Reader
from reproalign.common.text.shown import used_rows
from reproalign.more.config import DomainsConfig
from reproalign.more.groups import Groups, Mixture, all_rows, resample
from reproalign.more.items import Item, best_is_first, count_ties, has_pair, items_view, prepare
from reproalign.more.released import rules_of

logger = logging.getLogger(__name__)

METHODS = ("more", "multitask")
_TEXTS = Features({"texts": Sequence(Value("string")), "scores": Sequence(Value("float64"))})
_TOKENS = Features(
    {
        "input_ids": Sequence(Sequence(Value("int32"))),
        "scores": Sequence(Value("float64")),
        "tokens": Value("int64"),  # of all responses, after truncation
        "truncated": Value("int64"),  # responses that lost tokens
    }
)


@dataclass(frozen=True)
class Statistics:
    """What one split of a domain holds. Shares are between 0 and 1; ``tied`` and ``best_first`` are of the items read.

    Attributes:
        domain: its name.
        split: ``train`` or ``held out``.
        rejected: bad rows that ``data.on_error=skip`` set aside.
        items: items read.
        set_aside: items in which no two responses can be compared; ``released`` keeps them, so that they are none.
        used: items of an epoch, after resampling.
        responses: per item that is left, on average.
        tokens: per response that is left, on average, after truncation.
        truncated: share of these responses that lost tokens.
        tied: share of pairs of scored responses of one item that have equal scores.
        best_first: share of items whose first response, as the source has them, scores highest.
    """

    domain: str
    split: str
    rejected: int
    items: int
    set_aside: int
    used: int
    responses: float
    tokens: float
    truncated: float
    tied: float
    best_first: float


@dataclass(frozen=True)
class Domains:
    """What :func:`load_domains` answers.

    Attributes:
        train: rows to train on; None for an evaluation alone.
        held_out: by domain.
        statistics: what is in both.
        pad_id: the id that batches are to be padded with (ERRATA Q3).
    """

    train: Groups | Mixture | None
    held_out: dict[str, Mixture]
    statistics: list[Statistics]
    pad_id: int


def load_domains(
    config: DomainsConfig,
    reader: Reader,
    *,
    method: str,
    seed: int,
    run: Run,
    evaluation_only: bool = False,
) -> Domains:
    """Read, check, tokenise and resample every domain; print a table of them and record what they are.

    Items are numbered by their domain's place in ``data.train_domains``, held-out ones by that in ``data.domains``.

    Args:
        config: the domains.
        reader: of the reward model; its rules hold the variant.
        method: ``more`` has groups of one item per domain if domains are resampled; else rows are single items.
        seed: of draws and of what is held out.
        run: gets the data's fingerprints and the table.
        evaluation_only: read held-out items alone; all items of a domain that has none held out.

    Raises:
        UserError: for a bad row under ``on_error=raise``, a domain without usable items, and unusable settings.
    """
    choose("method", method, METHODS)
    trained = check_domains(config, evaluation_only=evaluation_only)
    train: dict[str, Prepared] = {}
    held_out: dict[str, Prepared] = {}
    view = items_view(config.oasst1_pairs, layout=reader.rules.layout)
    rejects = run.dir if run.is_main else None
    for name in config.names():
        training = name in trained
        loaded = load_set(name, config.sets[name], config, view, seed=seed, train=training, rejects_dir=rejects)
        for split, items, role, into in (
            ("train", loaded.train, "train", train),
            ("held out", loaded.evaluation or [], "evaluation", held_out),
        ):
            if items:
                facts = loaded.facts[role]
                prepared = prepare_items(items, reader, config, facts, place=f"domain '{name}', {split} items")
                recorded = {**facts, "items": len(prepared.tokens)}
                recorded.pop("sha256", None)
                run.add_fingerprint("data", f"{split}:{name}", prepared.sha256, **recorded)
                into[name] = prepared
    rows = _training_rows(config, train, variant=reader.rules.variant, method=method, seed=seed)
    statistics = [
        *(part.statistics(name, "train", _used(config, train)) for name, part in train.items()),
        *(part.statistics(name, "held out", None) for name, part in held_out.items()),
    ]
    run.set("domains", [asdict(found) for found in statistics])
    if rows is not None:
        used_rows(run, reader.tokenizer, rows)
    if run.is_main:
        result_console().print(tabulate(statistics))
    return Domains(
        rows,
        {
            name: Mixture([part.tokens], [all_rows(0, len(part.tokens))], [config.names().index(name)])
            for name, part in held_out.items()
        },
        statistics,
        reader.special.pad,
    )


def check_domains(config: DomainsConfig, *, evaluation_only: bool = False) -> list[str]:
    """Return the domains to be trained on.

    Raises:
        UserError: for settings that contradict each other, or that no data can meet.
    """
    check_sets(config)
    names = config.names()
    if not names:
        raise UserError("data.domains is empty; list at least one domain, such as helpful")
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"data.domains lists '{name}' twice; name each domain once")
        choose("domain", name, config.sets)
        if not re.fullmatch(r"[\w.-]+", name):
            raise UserError(f"data.domains: '{name}' must consist of letters, digits, '_', '-' and '.'")
    trained = names if config.train_domains is None else list(config.train_domains)
    if not trained or len(set(trained)) < len(trained) or not set(trained) <= set(names):
        raise UserError(
            f"data.train_domains={trained} must name some of the domains, each once: {', '.join(names)}; null: all"
        )
    if config.task_num is not None and config.task_num != len(trained):
        raise UserError(f"data.task_num={config.task_num}, but there are {len(trained)} domains: {', '.join(trained)}")
    return [] if evaluation_only else trained


@dataclass(frozen=True)
class Prepared:
    """A tokenised split: ``input_ids`` and ``scores``, with the counts that :class:`Statistics` is made of."""

    tokens: Dataset
    sha256: str
    rejected: int
    items: int
    pairs: int
    ties: int
    best_first: int

    def statistics(self, name: str, split: str, used: int | None) -> Statistics:
        """Sum up; ``used`` None: every item once."""
        responses = sum(len(scores) for scores in self.tokens["scores"][:])
        return Statistics(
            domain=name,
            split=split,
            rejected=self.rejected,
            items=self.items,
            set_aside=self.items - len(self.tokens),
            used=len(self.tokens) if used is None else used,
            responses=responses / len(self.tokens),
            tokens=sum(self.tokens["tokens"][:]) / responses,
            truncated=sum(self.tokens["truncated"][:]) / responses,
            tied=self.ties / max(self.pairs, 1),
            best_first=self.best_first / self.items,
        )


def prepare_items(
    items: list[Item], reader: Reader, config: DomainsConfig, facts: Mapping[str, Any], *, place: str
) -> Prepared:
    """Normalise scores, skip items without two comparable responses (``released``: keep them), and tokenise the others.

    Args:
        items: of one split.
        reader: renders and tokenises.
        config: processes and cache.
        facts: of the reading.
        place: names the split in errors.

    Raises:
        UserError: if no item is left.
    """
    texts: dict[str, list[Any]] = {"texts": [], "scores": []}
    for item in items:
        prepared = prepare(item, rules_of(reader.rules.variant).comparable)
        if prepared is not None:
            dialogues, scores = prepared
            texts["texts"].append([reader.render(dialogue) for dialogue in dialogues])
            texts["scores"].append(scores)
    if not any(has_pair(scores) for scores in texts["scores"]):
        raise UserError(
            f"{place}: none of the {len(items)} has two responses of different scores (all are ties, or too few are "
            "scored); give other rows"
        )
    dataset = Dataset.from_dict(texts, features=_TEXTS)
    digest = fingerprint_dataset(dataset)
    ties = [count_ties(item) for item in items]
    return Prepared(
        tokens=tokenize(dataset, digest, reader, config),
        sha256=digest,
        rejected=int(facts["rows_rejected"]),
        items=len(items),
        pairs=sum(pairs for pairs, _ in ties),
        ties=sum(tied for _, tied in ties),
        best_first=sum(best_is_first(item) for item in items),
    )


def tokenize(dataset: Dataset, digest: str, reader: Reader, config: DomainsConfig) -> Dataset:
    """Tokenise ``texts``; kept on disk under ``digest`` of the texts, the tokenizer and the rules."""

    def build(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        whole = iter(reader.encode([text for texts in batch["texts"] for text in texts]))
        columns: dict[str, list[Any]] = {"input_ids": [], "tokens": [], "truncated": []}
        for texts in batch["texts"]:
            full = [next(whole) for _ in texts]
            cut = [reader.truncate(ids) for ids in full]
            columns["input_ids"].append(cut)
            columns["tokens"].append(sum(map(len, cut)))
            columns["truncated"].append(sum(len(a) < len(b) for a, b in zip(cut, full, strict=True)))
        return {**columns, "scores": batch["scores"]}

    parts = ["more items", digest, *reader.fingerprint()]
    return map_cached(
        dataset,
        build,
        parts,
        cache_dir=config.cache_dir,
        num_proc=config.num_proc,
        desc="tokenize items",
        batched=True,
        remove_columns=dataset.column_names,
        features=_TOKENS,
    )


def tabulate(statistics: list[Statistics]) -> Table:
    """Return the table that is printed before training."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")  # fits into 80 columns
    for head in ("domain", "split"):
        table.add_column(head, no_wrap=True)
    for head in ("items", "bad rows", "set aside", "used", "per item", "tokens", "cut", "tied", "best first"):
        table.add_column(head, justify="right")
    for found in statistics:
        counts = [f"{count:,}" for count in (found.items, found.rejected, found.set_aside, found.used)]
        shares = [f"{share:.1%}" for share in (found.truncated, found.tied, found.best_first)]
        table.add_row(found.domain, found.split, *counts, f"{found.responses:.2f}", f"{found.tokens:.0f}", *shares)
    return table


def _training_rows(
    config: DomainsConfig, train: Mapping[str, Prepared], *, variant: str, method: str, seed: int
) -> Groups | Mixture | None:
    if not train:
        return None
    datasets = [train[name].tokens for name in _order(config, train)]
    sizes = [len(dataset) for dataset in datasets]
    if not config.resampling:
        return Mixture(datasets, [all_rows(number, size) for number, size in enumerate(sizes)])
    size = config.resampling_size if config.resampling_size is not None else max(sizes)
    picks = resample(sizes, size, names=_order(config, train), rule=rules_of(variant).resample, seed=seed)
    return Groups(datasets, picks) if method == "more" else Mixture(datasets, picks)


def _order(config: DomainsConfig, train: Mapping[str, Prepared]) -> list[str]:
    return [*train] if config.train_domains is None else list(config.train_domains)


def _used(config: DomainsConfig, train: Mapping[str, Prepared]) -> int | None:
    """Return the items of each domain in an epoch; None: all it has."""
    if not config.resampling:
        return None
    if config.resampling_size is not None:
        return config.resampling_size
    return max(len(part.tokens) for part in train.values())
