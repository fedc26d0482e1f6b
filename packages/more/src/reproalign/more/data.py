"""From the domains' rows to what the trainers read.

Rows -> items -> responses with scores (:mod:`~reproalign.more.items`) -> token ids, kept on disk
(:mod:`~reproalign.more.prepared`) -> groups or a mixture (:mod:`~reproalign.more.groups`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass

from reproalign.common.console import result_console
from reproalign.common.data.load import check_sets, load_set
from reproalign.common.errors import UserError, choose
from reproalign.common.records import Run
from reproalign.common.reward.reading import Reader
from reproalign.common.text.shown import used_rows
from reproalign.more.config import DomainsConfig, HeldOutDomainsConfig
from reproalign.more.groups import Groups, Mixture, all_rows, resample
from reproalign.more.items import items_view
from reproalign.more.prepared import PreparedItems, Statistics, prepare_items, tabulate
from reproalign.more.released import rules_of


@dataclass(frozen=True)
class Domains:
    """What :func:`load_domains` and :func:`load_held_out` answer.

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


def load_domains(config: DomainsConfig, reader: Reader, *, method: str, seed: int, run: Run) -> Domains:
    """Read, check, tokenise and resample every domain; print a table of them and record what they are.

    Items are numbered by their domain's place in ``data.train_domains``, held-out ones by that in ``data.domains``.

    Args:
        config: the domains.
        reader: of the reward model; its rules hold the variant.
        method: ``more`` has groups of one item per domain if domains are resampled; else rows are single items.
        seed: of draws and of what is held out.
        run: gets the data's fingerprints and the table.

    Raises:
        UserError: for a bad row under ``on_error=raise``, a domain without usable items, and unusable settings.
    """
    train, held_out = _prepare(config, check_training(config), reader, seed, run)
    rows = _training_rows(config, train, variant=reader.rules.variant, method=method, seed=seed)
    used = _used(config, train)
    return _told(
        config, [part.statistics(name, "train", used) for name, part in train.items()], rows, held_out, reader, run
    )


def load_held_out(config: HeldOutDomainsConfig, reader: Reader, *, seed: int, run: Run) -> Domains:
    """Read the held-out items of every domain likewise; all items of a domain that has none held out."""
    check_domains(config)
    _, held_out = _prepare(config, [], reader, seed, run)
    return _told(config, [], None, held_out, reader, run)


def _prepare(
    config: HeldOutDomainsConfig, trained: Collection[str], reader: Reader, seed: int, run: Run
) -> tuple[dict[str, PreparedItems], dict[str, PreparedItems]]:
    """Return the items of the domains that are trained on, and the held-out ones of all, by domain."""
    train: dict[str, PreparedItems] = {}
    held_out: dict[str, PreparedItems] = {}
    view = items_view(config.oasst1_pairs, layout=reader.rules.layout)
    for name in config.names():
        training = name in trained
        loaded = load_set(name, config.sets[name], config, view, seed=seed, train=training, rejects_dir=run.rejects)
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
    return train, held_out


def _told(
    config: HeldOutDomainsConfig,
    statistics: list[Statistics],
    rows: Groups | Mixture | None,
    held_out: Mapping[str, PreparedItems],
    reader: Reader,
    run: Run,
) -> Domains:
    """Record and print what is in the domains, ``statistics`` being of what is trained on, and return them."""
    statistics = [*statistics, *(part.statistics(name, "held out", None) for name, part in held_out.items())]
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


def check_domains(config: HeldOutDomainsConfig) -> list[str]:
    """Return the names of the domains.

    Raises:
        UserError: for domains that are not there, or cannot be told apart.
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
    return names


def check_training(config: DomainsConfig) -> list[str]:
    """Return the domains to be trained on.

    Raises:
        UserError: for settings that contradict each other, or that no data can meet.
    """
    names = check_domains(config)
    trained = names if config.train_domains is None else list(config.train_domains)
    if not trained or len(set(trained)) < len(trained) or not set(trained) <= set(names):
        raise UserError(
            f"data.train_domains={trained} must name some of the domains, each once: {', '.join(names)}; null: all"
        )
    if config.task_num is not None and config.task_num != len(trained):
        raise UserError(f"data.task_num={config.task_num}, but there are {len(trained)} domains: {', '.join(trained)}")
    return trained


def _training_rows(
    config: DomainsConfig, train: Mapping[str, PreparedItems], *, variant: str, method: str, seed: int
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


def _order(config: DomainsConfig, train: Mapping[str, PreparedItems]) -> list[str]:
    return [*train] if config.train_domains is None else list(config.train_domains)


def _used(config: DomainsConfig, train: Mapping[str, PreparedItems]) -> int | None:
    """Return the items of each domain in an epoch; None: all it has."""
    if not config.resampling:
        return None
    if config.resampling_size is not None:
        return config.resampling_size
    return max(len(part.tokens) for part in train.values())
