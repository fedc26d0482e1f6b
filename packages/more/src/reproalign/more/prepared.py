"""One split of a domain as token ids and scores, kept on disk, and the counts that its line of the table has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, Features, Sequence, Value
from rich.table import Table

from reproalign.common.data.cache import fingerprint_dataset, map_cached
from reproalign.common.errors import UserError
from reproalign.common.reward.reading import Reader
from reproalign.more.config import HeldOutDomainsConfig
from reproalign.more.items import Item, best_is_first, count_ties, has_pair, prepare
from reproalign.more.released import rules_of

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
        rejected: bad rows that ``data.on_error=skip`` skipped.
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
class PreparedItems:
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
    items: list[Item], reader: Reader, config: HeldOutDomainsConfig, facts: Mapping[str, Any], *, place: str
) -> PreparedItems:
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
    return PreparedItems(
        tokens=tokenize(dataset, digest, reader, config),
        sha256=digest,
        rejected=int(facts["rows_rejected"]),
        items=len(items),
        pairs=sum(pairs for pairs, _ in ties),
        ties=sum(tied for _, tied in ties),
        best_first=sum(best_is_first(item) for item in items),
    )


def tokenize(dataset: Dataset, digest: str, reader: Reader, config: HeldOutDomainsConfig) -> Dataset:
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
    for head in ("items", "bad rows", "no pair", "used", "per item", "tokens", "cut", "tied", "best first"):
        table.add_column(head, justify="right")
    for found in statistics:
        counts = [f"{count:,}" for count in (found.items, found.rejected, found.set_aside, found.used)]
        shares = [f"{share:.1%}" for share in (found.truncated, found.tied, found.best_first)]
        table.add_row(found.domain, found.split, *counts, f"{found.responses:.2f}", f"{found.tokens:.0f}", *shares)
    return table
