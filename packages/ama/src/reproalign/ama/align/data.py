"""The verb ``data``: from preference rows to the files that every other verb reads."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from rich.table import Table

from reproalign.ama.align.preference_rows import PreferenceExample, read_examples
from reproalign.ama.align.preference_split import Split, divide
from reproalign.ama.align.prompt_length import short_prompts
from reproalign.ama.align.raft_config import PreferenceDataConfig
from reproalign.ama.rules import rules_of
from reproalign.common.config.model import LoadedModelConfig
from reproalign.common.console import result_console, say, track
from reproalign.common.data.cache import fingerprint_rows
from reproalign.common.data.reading import Row, local_path, read_hub, read_local
from reproalign.common.errors import UserError
from reproalign.common.files import sha256_json
from reproalign.common.generation.samples import write_rows
from reproalign.common.invocation import Invocation
from reproalign.common.records import Run

SPLITS = ("published", "test", "fraction")
OWN = {"published": ("test_first", "test_last"), "fraction": ("eval_fraction", "seed")}  # keys that one split alone has
ON_HUB = ("name", "folders", "revision", "train_split", "test_split")
REJECTS = "rejects.jsonl"


def data(config: PreferenceDataConfig, invocation: Invocation) -> None:
    """Write ``prompts``, ``eval_prompts``, ``sft``, ``pairs`` and ``eval_pairs.jsonl``; how many of each is recorded.

    ``prompts`` and ``eval_prompts`` have ``id`` and ``prompt`` (messages), ``sft`` has ``messages``, the pairs are in
    TRL's preference format. ``rejects.jsonl`` says which rows were skipped, and why.

    Raises:
        UserError: for a mistake in the options, rows that cannot be read, or a part without rows.
    """
    check_data(config)
    variant = rules_of(config.variant)
    files = {role: [local_path(path, key=role) for path in getattr(config, role)] for role in ("train", "test")}
    with Run.open(invocation) as run:
        rejects: list[dict[str, str]] = []

        def reject(place: str, reason: str, what: str) -> None:
            rejects.append({"place": place, "reason": reason, "skipped": what})

        parts = {}
        for role, paths in files.items():
            rows = track(_rows(config, role, paths, run), f"reading {role} rows")
            parts[role] = read_examples(rows, config.on_error, reject)
        if not parts["train"]:
            raise UserError(f"train: none of the {len(rejects)} rows is usable; the first: {rejects[0]}")
        split = divide(parts["train"], parts["test"], config, trained_prompts=variant.trained_prompts)
        facts = {f"{role}_rows": len(rows) for role, rows in parts.items()}
        facts |= {f"rejected_{what}s": sum(row["skipped"] == what for row in rejects) for what in ("row", "pair")}
        write_rows(run.dir / REJECTS, rejects)
        facts |= _write(split, config, run)
        run.set_metrics(facts)
        table = Table("rows", "", header_style="bold")
        for name, count in facts.items():
            table.add_row(name.replace("_", " "), str(count))
        result_console().print(table)
        say(f"files and record: {run.dir}")


def check_data(config: PreferenceDataConfig) -> None:
    """Refuse options that contradict each other.

    Raises:
        UserError: naming the key.
    """
    if rules_of(config.variant).trained_prompts and config.split != "published":
        raise UserError(f"variant=released is the published division; set split=published, not split={config.split}")
    for split, names in OWN.items():
        for name in names:
            if config.split != split and getattr(config, name) != getattr(PreferenceDataConfig, name):
                raise UserError(f"{name} is of split={split}, not of split={config.split}; remove it")
    for name in ON_HUB if config.train else ():
        if getattr(config, name) != getattr(PreferenceDataConfig(), name):
            raise UserError(f"{name} is of rows on the Hub, and train=[FILE] gives files; remove one of them")
    if config.test and not config.train:
        raise UserError("test=[FILE] needs train=[FILE] beside it; without both the rows are the Hub's")
    _check_measuring(config)


def _check_measuring(config: PreferenceDataConfig) -> None:
    """Refuse a length of prompts that nothing measures, and what measures where no length is asked for."""
    if config.max_prompt_length is None:
        for name in ("tokenizer", "layout", "chat_template"):
            if getattr(config, name) != getattr(PreferenceDataConfig, name):
                raise UserError(f"{name} measures prompts, and max_prompt_length=null needs no measure; remove {name}")
        return
    if not config.tokenizer:
        raise UserError(
            "tokenizer is not set; name the policy, whose tokenizer measures prompts, or set max_prompt_length=null"
        )
    if config.chat_template and config.layout != "chat":
        raise UserError(f"chat_template is of layout=chat, not of layout={config.layout}; remove it")


def _rows(config: PreferenceDataConfig, role: str, paths: list[Path], run: Run) -> Iterator[Row]:
    """Yield the rows of a role, and fingerprint where they came from."""
    if config.train:
        for number, path in enumerate(paths, start=1):
            run.add_fingerprint("data", f"{role}-{number}", fingerprint_rows(path), path=str(path))
        yield from chain.from_iterable(map(read_local, paths))
        return
    split = config.train_split if role == "train" else config.test_split
    if split is None:
        return
    for number, folder in enumerate(config.folders or [None], start=1):
        rows, commit = read_hub(config.name, None, split, config.revision, data_dir=folder, key=role)
        name = f"{role}-{number}"
        identity = commit or f"{config.name}@{config.revision or 'main'}"
        run.add_fingerprint("data", name, identity, name=config.name, folder=folder, split=split)
        yield from rows


def _write(split: Split, config: PreferenceDataConfig, run: Run) -> dict[str, int]:
    """Write the files; return how many rows each has, and how many were left out on the way."""
    facts: dict[str, int] = {}
    trained = {row.key for row in split.train}
    leaked = sum(row.key in trained for row in split.eval_prompts)
    evaluated = [row for row in split.eval_prompts if not (config.decontaminate and row.key in trained)]
    facts["eval_prompts_in_training"] = leaked
    if not evaluated:
        raise UserError("decontaminate=true leaves no evaluation prompt: the training part has all of them")
    for name, rows in (("prompts", split.prompts), ("eval_prompts", evaluated)):
        kept = _prompts(name, rows, config, facts)
        written = [{"id": number, "prompt": row.prompt} for number, row in enumerate(kept)]
        _save(run, name, written, facts)
    _save(run, "sft", [row.dialogue() for row in split.train], facts)
    for name, rows in (("pairs", split.train), ("eval_pairs", split.held_out)):
        _save(run, name, [row.pair() for row in rows if row.rejected is not None], facts)
    return facts


def _prompts(
    name: str, rows: list[PreferenceExample], config: PreferenceDataConfig, facts: dict[str, int]
) -> list[PreferenceExample]:
    different: dict[str, PreferenceExample] = {}
    for row in rows:
        different.setdefault(row.key, row)
    facts[f"{name}_repeated"] = len(rows) - len(different)
    rows = list(different.values()) if config.dedup_prompts else rows
    if config.max_prompt_length is None:
        return rows
    assert config.tokenizer is not None  # check_data has seen to it
    policy = LoadedModelConfig(name=config.tokenizer, chat_template=config.chat_template)
    short = short_prompts([row.prompt for row in rows], policy, config.layout, config.max_prompt_length, key=name)
    facts[f"{name}_overlong"] = len(rows) - len(short)
    return [rows[index] for index in short]


def _save(run: Run, name: str, rows: list[dict[str, object]], facts: dict[str, int]) -> None:
    if not rows:
        raise UserError(f"{name}.jsonl would have no rows: none of the rows of its part is usable")
    write_rows(run.dir / f"{name}.jsonl", rows)
    run.add_fingerprint("data", name, sha256_json(rows), made=True, rows=len(rows))
    facts[name] = len(rows)
