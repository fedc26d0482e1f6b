"""From data sets to tokenised rows: ``load_examples`` (rows of the data sets -> examples by prompt), then
``prepare_rows`` (examples -> rows of one kind, in the order of training -> ids).
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from reproalign.common.config.data import ReadingConfig
from reproalign.common.config.text import PairTextConfig
from reproalign.common.console import track
from reproalign.common.data.cache import cache_folder, cached, fingerprint_dataset, fingerprint_tokenizer
from reproalign.common.data.load import check_sets, load_set
from reproalign.common.data.records import assistant
from reproalign.common.errors import UserError
from reproalign.common.files import sha256_json
from reproalign.common.text.pairs import tokenize_pairs
from reproalign.common.text.render import render_pairs
from reproalign.common.text.tokenize import check_lengths
from reproalign.radpo.batches import check_mismatch, lay_out, mismatch
from reproalign.radpo.config import HeldOutRowsConfig, RowTextConfig
from reproalign.radpo.examples import Examples, examples_view
from reproalign.radpo.released import Conversations
from reproalign.radpo.rows import KINDS, Row, RowRules, build_rows

logger = logging.getLogger(__name__)


@dataclass
class LoadedExamples:
    """Examples of both splits, and where they came from."""

    train: Examples
    evaluation: Examples | None
    provenance: dict[str, dict[str, Any]] = field(default_factory=dict)


def load_examples(
    data: ReadingConfig,
    *,
    any_pair: bool = False,
    seed: int = 1,
    train: bool = True,
    rejects_dir: Path | None = None,
) -> LoadedExamples:
    """Read the data sets; a prompt that two of them have is the later one's.

    Args:
        data: which.
        any_pair: keep pairs with an empty response and of two equal ones (ERRATA Q22).
        seed: of what is held out.
        train: whether there is a training; otherwise the held-out examples alone are wanted, of a set without them all.
        rejects_dir: where ``data.on_error=skip`` lists bad rows.

    Raises:
        UserError: for a bad row under ``on_error=raise``, and for unusable settings.
    """
    check_sets(data)
    view = examples_view(any_pair=any_pair)
    found = LoadedExamples({}, None)
    for label, entry in data.sets.items():
        loaded = load_set(label, entry, data, view, seed=seed, train=train, rejects_dir=rejects_dir)
        found.train |= {example.key: example for example in loaded.train}
        if loaded.evaluation is not None:
            found.evaluation = (found.evaluation or {}) | {example.key: example for example in loaded.evaluation}
        for role, facts in loaded.facts.items():
            examples = loaded.train if role == "train" else loaded.evaluation or []
            pairs = sum(len(example.pairs) for example in examples)
            digest = sha256_json([vars(example) for example in examples])
            found.provenance[f"{role}:{label}"] = {**facts, "prompts": len(examples), "pairs": pairs, "sha256": digest}
    return found


def prepare_rows(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    text: RowTextConfig,
    data: HeldOutRowsConfig,
    rules: RowRules,
    *,
    max_rows: int | None = None,
) -> tuple[Dataset, dict[str, int]]:
    """Turn examples into tokenised rows in the order of training.

    Args:
        examples: by prompt.
        tokenizer: with a chat template (the release's is :data:`~reproalign.common.text.templates.TEMPLATES` halos).
        text: lengths, ``overlong``.
        data: processes and cache.
        rules: which rows, in which order.
        max_rows: rows at most, see :func:`~reproalign.radpo.batches.lay_out`.

    Returns:
        ``chosen_input_ids``, ``chosen_prompt_length``, the same for rejected; or ``input_ids``, ``prompt_length``, for
        unpaired kinds ``label``, and for ``mismatched`` ``KL_input_ids`` and ``KL_prompt_length``. And the numbers of
        rows and of rows dropped with incomplete batches.

    Raises:
        UserError: for settings that cannot be met by these examples.
    """
    _check(text, rules)
    batches, dropped = lay_out(build_rows(examples, rules), rules, max_rows)
    if dropped:
        logger.warning("%d rows of incomplete batches are left out", dropped)
    tokenized = _tokenize(batches, tokenizer, text, data, rules)
    return tokenized, {"rows": len(tokenized), "dropped": dropped}


def prepare_held_out(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    text: RowTextConfig,
    data: HeldOutRowsConfig,
    rules: RowRules,
) -> tuple[Dataset, int]:
    """Turn the held-out examples into ``data.max_eval_rows`` tokenised rows, in the order of their evaluation.

    Conversations that are cut in place are changed by an evaluation for the next one (ERRATA Q7), so the rows of as
    many passes follow one another as differ; evaluations after them see those of the last one.

    Returns:
        The rows of all passes, as :func:`prepare_rows` has them, and the number of rows of a pass.
    """
    _check(text, rules)
    batches = held_out_batches(examples, rules, data.max_eval_rows)
    size = sum(map(len, batches))
    if not rules.variant.cut_in_place:
        return _tokenize(batches, tokenizer, text, data, rules), size
    for passes in (2, 4, 8):
        rows = _tokenize(batches * passes, tokenizer, text, data, rules)
        found = [rows.select(range(start, start + size)).to_list() for start in range(0, len(rows), size)]
        if found[-1] == found[-2]:
            break
    while len(found) > 1 and found[-1] == found[-2]:
        found.pop()
    return rows.select(range(len(found) * size)), size


def held_out_batches(examples: Examples, rules: RowRules, limit: int | None) -> list[list[Row]]:
    """Return the batches of one evaluation, in their order.

    With ``across_epochs`` a limit takes rows in the order of training, goes on with the next epochs of a split that is
    shorter, and is rounded up to whole batches; without one an evaluation is the whole batches of an epoch (ERRATA
    Q21).

    Args:
        examples: the held-out split.
        rules: kind, seed, batch size and variant; the rest is of training.
        limit: rows at most; null: all.
    """
    once = replace(rules, epochs=1, processes=1, accumulation=1, repeats=1, incomplete="keep")
    if rules.variant.across_epochs:
        once = replace(once, epochs=None if limit else 1, incomplete="drop")
    return lay_out(build_rows(examples, once), once, limit)[0]


def _check(text: RowTextConfig, rules: RowRules) -> None:
    check_lengths(text.max_length, text.max_prompt_length)
    for name in ("overlong", "special_tokens", "system_message"):
        if rules.variant.cut_in_place and getattr(text, name) != getattr(RowTextConfig, name):
            raise UserError(f"text.{name} is not read by variant=released, which has a rule of its own; leave it out")


def _tokenize(
    batches: list[list[Row]],
    tokenizer: PreTrainedTokenizerBase,
    text: RowTextConfig,
    data: HeldOutRowsConfig,
    rules: RowRules,
) -> Dataset:
    if rules.kind == "mismatched":
        check_mismatch(batches)
    tokenize = _tokenize_in_place if rules.variant.cut_in_place else _tokenize_apart
    tokenized = tokenize(batches, tokenizer, text, data, rules)
    names = {"completion_input_ids": "input_ids", "completion_prompt_length": "prompt_length"}
    return tokenized.rename_columns({old: new for old, new in names.items() if old in tokenized.column_names})


def _tokenize_apart(
    batches: list[list[Row]],
    tokenizer: PreTrainedTokenizerBase,
    text: RowTextConfig,
    data: HeldOutRowsConfig,
    rules: RowRules,
) -> Dataset:
    sides = KINDS[rules.kind]
    names = [name for group in sides for name in group]
    rows = [row for batch in (mismatch(batches) if rules.kind == "mismatched" else batches) for row in batch]
    records = Dataset.from_list([row | {name: [assistant(row[name])] for name in names} for row in rows])
    options = PairTextConfig(**asdict(text))
    rendered = render_pairs(records, tokenizer, options, data, sides=names, generation=True)
    return tokenize_pairs(rendered, tokenizer, options, data, sides=sides)


def _tokenize_in_place(
    batches: list[list[Row]],
    tokenizer: PreTrainedTokenizerBase,
    text: RowTextConfig,
    data: HeldOutRowsConfig,
    rules: RowRules,
) -> Dataset:
    def build() -> Dataset:
        conversations = Conversations(
            tokenizer, text.max_length, text.max_prompt_length, clean_up_spaces=rules.clean_up_spaces
        )
        rows: list[Row] = []
        for number, batch in enumerate(track(batches, "tokenising")):
            again = rules.repeats > 1 and number % rules.repeats > 0
            rows += rows[-len(batch) :] if again else _released_batch(batch, conversations, rules.kind)
        return Dataset.from_list(rows)

    records = fingerprint_dataset(Dataset.from_list([row for batch in batches for row in batch]))
    settings = [rules.kind, [len(batch) for batch in batches], text.max_length, text.max_prompt_length]
    settings += [rules.repeats, rules.clean_up_spaces]
    parts = ["radpo released 2", records, fingerprint_tokenizer(tokenizer), settings]
    return cached(cache_folder(data.cache_dir), parts, build)


def _released_batch(batch: list[Row], conversations: Conversations, kind: str) -> list[Row]:
    """Tokenise a batch in the release's order: row by row and side by side; then its mismatched pairs."""
    found = [
        {side: conversations.element(row["key"], row["prompt"], row[side]) for side in KINDS[kind][0]} for row in batch
    ]
    if kind == "mismatched":  # a mismatched response was cut for its own prompt first
        following = [sides["completion"].response for sides in found[1:] + found[:1]]
        for row, sides, response in zip(batch, found, following, strict=True):
            sides["KL"] = conversations.element(row["key"], row["prompt"], response)
    rows = []
    for row, sides in zip(batch, found, strict=True):
        tokenized: Row = {"label": row["label"]} if "label" in row else {}
        for side, element in sides.items():
            tokenized |= {f"{side}_input_ids": element.ids, f"{side}_prompt_length": element.prompt_length}
        rows.append(tokenized | {"length": max(len(element.ids) for element in sides.values())})
    return rows
