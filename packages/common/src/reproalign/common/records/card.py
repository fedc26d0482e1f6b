"""Model cards: what a run's record says of the weights it made, as the ``README.md`` beside them.

A card is made from ``run.json`` alone, so it can be made again, with the name that the model has on the Hub. It carries
no private paths: of a folder or file given by an absolute path, only its name is shown.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from reproalign.common.files import sha256_file, write_text
from reproalign.common.manifests import CARD, RECORD
from reproalign.common.mappings import flatten
from reproalign.common.records.fingerprints import identity_of
from reproalign.common.records.lineage import read_plain
from reproalign.common.records.markdown import code, duration, number, public, public_values, table, yaml_block
from reproalign.common.records.model_folder import ModelFolder
from reproalign.common.records.paper import load_paper

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
logger = logging.getLogger(__name__)


def write_cards(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the card of every model folder that a finished run made; a run is not lost if that fails."""
    for made in made_folders(record):
        if (folder / made).is_dir():
            try:
                write_text(folder / made / CARD, model_card(folder, record, made))
            except OSError as error:
                logger.warning("%s: the model card could not be written (%s)", folder / made, error.strerror)


def made_folders(record: Mapping[str, Any]) -> list[str]:
    """List the model folders, below its own, that a run made."""
    weights = record.get("fingerprints", {}).get("weights", {}).values()
    return list(dict.fromkeys(str(entry["folder"]) for entry in weights if "folder" in entry))


def model_card(folder: Path, record: Mapping[str, Any], made: str, repo: str | None = None) -> str:
    """Return the card of the model in ``folder / made``, with its metadata for the Hub as a YAML header.

    Args:
        folder: of the run.
        record: of the run.
        made: the model's folder, below the run's.
        repo: its name on the Hub, if it is there.
    """
    from huggingface_hub import ModelCard, ModelCardData

    model = folder / made
    kind = ModelFolder(model)
    base = hub_base(record)
    paper = _paper(record["package"])
    name = record["package"].rpartition(".")[2]
    merge = record.get("merges", {}).get(made)
    relation = "merge" if merge else "adapter" if kind.adapter else "finetune"
    data = ModelCardData(
        base_model=base,
        base_model_relation=relation if base else None,
        library_name="peft" if kind.adapter else "transformers",
        pipeline_tag="text-classification" if kind.reward else "text-generation",
        datasets=_hub_datasets(record) or None,
        tags=["reproalign", name, *(["merge"] if merge else []), *_arxiv_tag(paper)],
    )
    body = "\n\n".join(
        [
            f"# {(repo or folder.resolve().name).rpartition('/')[2]}",
            _summary(record, kind, paper, base),
            *_section("Use", kind.usage(repo or "path/to/this/folder", base)),
            *_section("How it was made", _made_how(record)),
            *_section("Weights it was made from", _weights(record)),
            *_section("Data", _data(record)),
            *_section("Metrics", _metrics(record.get("metrics", {}))),
            *_section("Merge", _merge(merge, record.get("notes", []))),
            *_section("Citation", _citation(paper)),
            *_section("Record", _record(folder, record, made)),
        ]
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n"))


def hub_base(record: Mapping[str, Any]) -> str | None:
    """Return the Hub model that a run began at, itself or through the runs that its inputs came from."""
    for entry in _inputs(record, "weights").values():
        if _HUB_NAME.fullmatch(str(entry.get("name", ""))) and "@" in identity_of(entry):
            return str(entry["name"])
    earlier = (read_plain(Path(entry["run"])) for entry in record.get("inputs", {}).values())
    return next((base for before in earlier if before and (base := hub_base(before))), None)


def _paper(package: str) -> dict[str, Any]:
    try:
        return load_paper(package)
    except FileNotFoundError:  # the core's own verbs
        return {}


def _arxiv_tag(paper: Mapping[str, Any]) -> list[str]:
    return [f"arxiv:{paper['arxiv']}"] if "arxiv" in paper else []


def _summary(record: Mapping[str, Any], kind: ModelFolder, paper: Mapping[str, Any], base: str | None) -> str:
    text = f"{kind}, made by `{record['command'].split()[0]} {record['verb']}` of reproalign"
    text += f", from [{base}](https://huggingface.co/{base})" if base else ""
    if paper:
        text += f". Method: *{paper['title']}*"
        text += f" ([arXiv {paper['arxiv']}](https://arxiv.org/abs/{paper['arxiv']}))" if "arxiv" in paper else ""
    return f"{text}."


def _made_how(record: Mapping[str, Any]) -> str:
    precision = record.get("precision") or {}
    accelerators = record.get("hardware", {}).get("accelerators", [])
    git = record.get("git") or {}
    versions = record.get("versions", {})
    own = [f"{name} {version}" for name, version in versions.items() if name.startswith("reproalign")]
    others = [f"{name} {version}" for name, version in versions.items() if not name.startswith("reproalign")]
    peak = record.get("peak_memory") or {}
    facts = {
        "recipe": record.get("recipe"),
        "variant": record["config"].get("variant"),
        "seed": record.get("seed"),
        "precision": ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in precision.items()),
        "hardware": ", ".join(entry["name"] for entry in accelerators) or record.get("hardware", {}).get("cpu"),
        "processes": f"{record.get('processes', 1)} ({record.get('strategy', 'single')})",
        "wall time": duration(record.get("wall_seconds")),
        "peak memory": ", ".join(f"{key.removesuffix('_bytes')} {size / 2**30:.1f} GiB" for key, size in peak.items()),
        "code": ", ".join([*own, *([f"commit {git['commit']}{' with changes' * git['dirty']}"] if git else [])]),
        "libraries": ", ".join(others),
    }
    command = f"```bash\n{public(record['command'])}\n```"
    whole = f"<details><summary>The whole configuration</summary>\n\n{yaml_block(record['config'])}\n\n</details>"
    return "\n\n".join([command, table(("", ""), ((key, value) for key, value in facts.items() if value)), whole])


def _inputs(record: Mapping[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    found = record.get("fingerprints", {}).get(kind, {})
    return {name: entry for name, entry in found.items() if "folder" not in entry}


def _weights(record: Mapping[str, Any]) -> str:
    rows = []
    for name, entry in _inputs(record, "weights").items():
        rows.append(
            (
                public_values(name),
                public_values(str(entry.get("name") or entry.get("path") or "")),
                code(identity_of(entry)),
            )
        )
        rows += [("", file, code(digest)) for file, digest in entry.get("files", {}).items()]
    return table(("role", "weights", "SHA-256 or commit"), rows)


def _data(record: Mapping[str, Any]) -> str:
    rows = []
    for name, entry in _inputs(record, "data").items():
        where = entry.get("path") or entry.get("dataset") or entry.get("name") or entry.get("source") or ""
        count = next((entry[key] for key in ("rows_used", "rows", "pairs", "items") if key in entry), "")
        rows.append((public_values(name), public_values(str(where)), count, code(identity_of(entry))))
    return table(("part", "from", "rows", "SHA-256 or commit"), rows)


def _hub_datasets(record: Mapping[str, Any]) -> list[str]:
    names = (str(entry.get("dataset") or entry.get("path") or "") for entry in _inputs(record, "data").values())
    return sorted({name for name in names if _HUB_NAME.fullmatch(name) and not Path(name).exists()})


def _metrics(metrics: Mapping[str, Any]) -> str:
    """Return a table; groups of the same measures (before and after, domains) are its columns."""
    single = {name: value for name, value in metrics.items() if not isinstance(value, Mapping)}
    groups = _groups(metrics)
    parts = [table(("measure", "value"), ((name, number(value)) for name, value in single.items()))]
    measures = list(dict.fromkeys(name for values in groups.values() for name in values))
    rows = ((name, *(number(values.get(name)) for values in groups.values())) for name in measures)
    return "\n\n".join(filter(None, [*parts, table(("measure", *groups), rows)]))


def _groups(metrics: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping) and value and all(isinstance(entry, Mapping) for entry in value.values()):
            found |= _groups(value)
        elif isinstance(value, Mapping):
            found[name] = flatten(dict(value))
    return found


def _merge(merge: Mapping[str, Any] | None, notes: Iterable[str]) -> str:
    if merge is None:
        return ""
    lines = "\n".join(f"- {public(note)}" for note in notes)
    return f"By {merge['by']}.\n\n{yaml_block(merge['plan'])}" + (f"\n\n{lines}" if lines else "")


def _citation(paper: Mapping[str, Any]) -> str:
    return f"```bibtex\n{str(paper['bibtex']).strip()}\n```" if "bibtex" in paper else ""


def _record(folder: Path, record: Mapping[str, Any], made: str) -> str:
    weights = record["fingerprints"]["weights"].values()
    identity = next(identity_of(entry) for entry in weights if entry.get("folder") == made)
    facts = {
        "SHA-256 of run.json": code(sha256_file(folder / RECORD)),
        "SHA-256 of the weights": code(identity),
        "SHA-256 of the first rows as tokens": code(str((record.get("tokens") or {}).get("sha256", ""))),
        "started": record.get("started"),
        "ended": record.get("ended"),
        "resumptions": record.get("resumptions"),
    }
    told = table(("", ""), ((key, value) for key, value in facts.items() if value not in (None, "")))
    how = "`reproalign replay RUN` runs the record again, and `reproalign verify` compares two, number by number."
    return f"{told}\n\n{how}"


def _section(title: str, text: str) -> list[str]:
    return [f"## {title}", text] if text else []
