"""From the domains' rows to what the trainers read.

Rows -> items (:mod:`reproalign.more.sources`) -> responses with scores (:mod:`~reproalign.more.items`) -> token ids
(:mod:`reproalign.common.reward.reading`), kept on disk -> groups or a mixture (:mod:`~reproalign.more.groups`).
"""

from __future__ import annotations

import logging
import math
import random
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Sequence, Value
from rich.table import Table

from reproalign.common.config import DataConfig
from reproalign.common.console import result_console
from reproalign.common.data.cache import fingerprint_dataset, map_cached
from reproalign.common.data.reading import local_path, read_local
from reproalign.common.data.shown import used_rows
from reproalign.common.data.splits import read_split
from reproalign.common.errors import UserError, choose, did_you_mean
from reproalign.common.records import Run
from reproalign.common.reward.reading import Reader
from reproalign.more.config import DomainsConfig
from reproalign.more.groups import Groups, Mixture, all_rows, resample
from reproalign.more.items import best_is_first, count_ties, has_pair, prepare
from reproalign.more.released import rules_of
from reproalign.more.sources import PAIRINGS, SOURCES, Item, Source, source_of

logger = logging.getLogger(__name__)

METHODS = ("more", "multitask")
_KEYS = {"train": "paths", "evaluation": "eval_paths"}
_FOLDER_SPLITS = {"train": "train", "evaluation": "test"}  # begin names of files in folders, if the source has no such
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
        evaluation_only: read held-out items alone; those of ``data.paths`` where a domain has no others.

    Raises:
        UserError: for a bad row under ``on_error=raise``, a domain without usable items, and unusable settings.
    """
    choose("method", method, METHODS)
    trained = check_domains(config, evaluation_only=evaluation_only)
    train: dict[str, Prepared] = {}
    held_out: dict[str, Prepared] = {}
    for name in config.domains:
        splits = read_domain(
            config, name, reader, seed=seed, train=name in trained, rejects_dir=run.dir if run.is_main else None
        )
        for split, (items, facts) in splits.items():
            prepared = prepare_items(items, reader, config, facts, place=f"domain '{name}', {split} items")
            recorded = {**facts, "items": len(prepared.tokens), "sha256": prepared.sha256}
            run.add_fingerprint("data", f"{split}:{name}", recorded.pop("sha256"), **recorded)
            (train if split == "train" else held_out)[name] = prepared
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
            name: Mixture([part.tokens], [all_rows(0, len(part.tokens))], [config.domains.index(name)])
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
    names = config.domains
    if not names:
        raise UserError("data.domains is empty; list at least one domain, such as helpful")
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"data.domains lists '{name}' twice; name each domain once")
        if not re.fullmatch(r"[\w.-]+", name):
            raise UserError(f"data.domains: '{name}' must consist of letters, digits, '_', '-' and '.'")
    for key in ("paths", "eval_paths", "sources", "first", "eval_first", "revisions"):
        for name in getattr(config, key):
            spared = not key.endswith("paths") and name in SOURCES  # data=five data.domains=[helpful] is no mistake
            if name not in names and not spared:
                raise UserError(
                    f"data.{key}.{name}: there is no such domain{did_you_mean(name, names)}; data.domains lists "
                    f"{', '.join(names)}"
                )
    trained = names if config.train_domains is None else list(config.train_domains)
    if not trained or len(set(trained)) < len(trained) or not set(trained) <= set(names):
        raise UserError(
            f"data.train_domains={trained} must name some of data.domains, each once: {', '.join(names)}; null: all"
        )
    if config.task_num is not None and config.task_num != len(trained):
        raise UserError(f"data.task_num={config.task_num}, but there are {len(trained)} domains: {', '.join(trained)}")
    for key in ("first", "eval_first"):
        for name, count in getattr(config, key).items():
            if count < 1:
                raise UserError(f"data.{key}.{name}={count} must be at least 1")
    if not 0 <= config.eval_fraction < 1:
        raise UserError(f"data.eval_fraction={config.eval_fraction} must be in [0, 1)")
    choose("data.on_error", config.on_error, ["raise", "skip"])
    choose("data.oasst1_pairs", config.oasst1_pairs, PAIRINGS)
    return [] if evaluation_only else trained


def read_domain(
    config: DomainsConfig,
    name: str,
    reader: Reader,
    *,
    seed: int,
    train: bool,
    rejects_dir: Path | None = None,
) -> dict[str, tuple[list[Item], dict[str, Any]]]:
    """Read the splits of a domain: by ``train`` and ``held out`` its items, and facts about where they came from.

    Held-out rows are those of ``data.eval_paths``, or the source's own split on the Hub, or a share
    ``data.eval_fraction`` of the training rows' prompts; else, of a domain that is not trained on, all of
    ``data.paths``.

    Args:
        config: all domains.
        name: which.
        reader: tells the layout.
        seed: of what is held out.
        train: whether the training items are wanted.
        rejects_dir: where ``data.on_error=skip`` lists bad rows.

    Raises:
        UserError: for a bad row under ``on_error=raise``, and if there are no rows.
    """
    source = None if name in config.paths or name in config.eval_paths else domain_source(config, name, "train")
    own_split = source is not None and source.splits[1] != ""
    splits = {}
    if name in config.eval_paths or own_split:
        splits["held out"] = _read(config, name, "evaluation", reader, rejects_dir)
    if not (train or splits or config.eval_fraction or name in config.paths):
        raise UserError(f"domain '{name}' has no held-out rows; set data.eval_paths.{name}=FILE or data.eval_fraction")
    if train or not splits:
        items, facts = _read(config, name, "train", reader, rejects_dir)
        if config.eval_fraction and not splits:
            total = len(items)
            items, held = hold_out(items, config.eval_fraction, seed, name)
            if name in config.paths and not train:
                logger.warning(
                    "domain '%s': %d of the %d items in %s are measured, the share data.eval_fraction=%s that training "
                    "on it would hold out; data.eval_paths.%s=FILE measures a whole file",
                    *(name, len(held), total, config.paths[name], config.eval_fraction, name),
                )
            splits["held out"] = (held[: config.eval_first.get(name)], {**facts, "held_out_of": "train"})
        elif not train:
            splits["held out"] = (items[: config.eval_first.get(name)], facts)
        if train:
            splits["train"] = (items, facts)
    return splits


def domain_source(config: DomainsConfig, name: str, role: str) -> Source:
    """Return the source that reads a domain's rows: as configured, as the columns of its file tell, or of its name.

    Raises:
        UserError: if nothing tells.
    """
    if name in config.sources:
        return SOURCES[choose(f"data.sources.{name}", config.sources[name], SOURCES)]
    key = f"data.{_KEYS[role]}.{name}"
    path = getattr(config, _KEYS[role]).get(name)
    if path is None:
        if name not in SOURCES:
            raise UserError(f"domain '{name}' is no data set known here{did_you_mean(name, SOURCES)}; set {key}=FILE")
        return SOURCES[name]
    own = SOURCES[name].splits[role != "train"] if name in SOURCES else ""
    file = local_path(path, own or _FOLDER_SPLITS[role], key=key)
    columns: set[str] = next((set(row.values) for row in read_local(file) if not row.problem), set())
    found = source_of(name, columns)
    if found is None:
        raise UserError(
            f"{path}: rows of domain '{name}' need the columns text and score, or prompt, responses and scores, or "
            f"prompt, chosen and rejected; they have {', '.join(sorted(columns)) or 'none'}"
        )
    return SOURCES[found]


def hold_out(items: list[Item], fraction: float, seed: int, name: str) -> tuple[list[Item], list[Item]]:
    """Take away a share of the prompts, with all their items.

    Raises:
        UserError: if none is left to train on.
    """
    prompts = [*dict.fromkeys(item.prompt() for item in items)]
    held = math.ceil(fraction * len(prompts))
    if held >= len(prompts):
        raise UserError(
            f"data.eval_fraction={fraction} of the {len(prompts)} prompts of domain '{name}' leaves none to train on"
        )
    taken = set(random.Random(seed).sample(prompts, held))
    return [i for i in items if i.prompt() not in taken], [i for i in items if i.prompt() in taken]


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


def _read(
    config: DomainsConfig, name: str, role: str, reader: Reader, rejects_dir: Path | None
) -> tuple[list[Item], dict[str, Any]]:
    source = domain_source(config, name, role)
    single = DataConfig(
        source=source.name,
        path=config.paths.get(name),
        eval_path=config.eval_paths.get(name),
        revision=config.revisions.get(name, source.revision),
        train_split=source.splits[0],
        eval_split=source.splits[1] or _FOLDER_SPLITS[role],
        on_error=config.on_error,
    )

    def to_part(row: dict[str, Any]) -> Any:
        part = source.to_part(row)
        # Here an error names file and line.
        return part.parsed() if reader.rules.layout == "chat" and isinstance(part, Item) else part

    parts, facts = read_split(
        single, source, role, to_part, rejects_dir, part=f"-{name}", key=f"data.{_KEYS[role]}.{name}"
    )
    items = source.collect(parts, config.oasst1_pairs)
    if not items:
        raise UserError(f"domain '{name}': its {facts['rows_read']} {role} rows make no item; give more rows")
    first = config.first if role == "train" else config.eval_first
    return items[: first.get(name)], facts


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
