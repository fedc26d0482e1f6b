"""Whether models can be merged at all, said before anything is written: what differs, named tensor by tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from reproalign.common.errors import UserError
from reproalign.common.merging.adapted import AdaptedCheckpoint
from reproalign.common.merging.blocks import Blocks
from reproalign.common.merging.config_check import SHOWN, check_architectures, check_configs
from reproalign.common.merging.headers import read_json
from reproalign.common.merging.inputs import Model
from reproalign.common.merging.operands import ranges
from reproalign.common.merging.settings import MergeSettings


@dataclass
class Fit:
    """One tensor of the output and where the models have it.

    Attributes:
        names: its name in each model.
        shape: in the output.
        common: leading rows that all models have; None: all.
        rest: model that the rows beyond are copied from, if there are any.
    """

    names: list[str]
    shape: tuple[int, ...]
    common: int | None = None
    rest: int | None = None


@dataclass
class Agreement:
    """What the models have in common.

    Attributes:
        fits: by name of the output's tensor.
        tied: the output's head is its embedding.
        vocabulary: rows of the output's embedding if they are not the template's, else None.
        notes: for the user.
    """

    fits: dict[str, Fit]
    tied: bool
    vocabulary: int | None = None
    notes: list[str] = field(default_factory=list)


def agree(models: Sequence[Model], blocks: Sequence[Blocks], settings: MergeSettings, template: Path) -> Agreement:
    """Find how the tensors of several models belong together.

    Args:
        models: the base, if any, and the models.
        blocks: the architecture of each.
        settings: what is allowed.
        template: whose tokenizer is copied.

    Raises:
        UserError: if they cannot be merged, or not without being told to.
    """
    check_architectures(models)
    found = Agreement({}, tied=False)
    found.notes += check_configs([model.label for model in models], blocks, settings)
    names, found.tied = _names(models, blocks, settings, found)
    for name, places in names.items():
        found.fits[name] = _fit(name, places, models, blocks[0], settings, found)
    _check_template(found, models, blocks[0], settings, template)
    found.notes += _dtype_notes(models)
    found.notes += _base_notes(models)
    from reproalign.common.merging.tokenizer_check import check_tokenizers

    found.notes += check_tokenizers(models, settings, template)
    return found


def _check_template(
    found: Agreement, models: Sequence[Model], blocks: Blocks, settings: MergeSettings, folder: Path
) -> None:
    """Check that a model that is not merged, but whose files are copied, computes as the merged ones do."""
    label = settings.files_from
    if label is None or folder in {model.folder for model in models} or not (folder / "config.json").is_file():
        return
    other = Blocks(read_json(folder / "config.json"), label)
    if type(other.model) is not type(blocks.model):
        kinds = [type(entry.model).__name__ for entry in (other, blocks)]
        raise UserError(f"files_from={label}: a {kinds[0]}, and the models are {kinds[1]}; name one of their kind")
    if settings.tied == "keep" and bool(other.model.config.get_text_config().tie_word_embeddings) != found.tied:
        raise UserError(f"files_from={label}: its tie_word_embeddings is not that of the models; name another")
    found.notes += check_configs([models[0].label, label], [blocks, other], settings)
    embedding = found.fits.get(f"{blocks.input_embedding}.weight")
    if found.vocabulary is None and embedding is not None:
        found.vocabulary = embedding.shape[0]


def _names(
    models: Sequence[Model], blocks: Sequence[Blocks], settings: MergeSettings, found: Agreement
) -> tuple[dict[str, list[str]], bool]:
    """Return where each tensor of the output is in each model, and whether the output is tied."""
    names = [{name: name for name in model.tensors} for model in models]
    tied = [bool(entry.model.config.get_text_config().tie_word_embeddings) for entry in blocks]
    keep = settings.tied == "keep"
    if any(tied) and blocks[0].head:
        embedding, head = f"{blocks[0].input_embedding}.weight", f"{blocks[0].head}.weight"
        if keep and not all(tied):
            first, other = models[tied.index(True)], models[tied.index(False)]
            raise UserError(
                f"the head of '{first.label}' is its embedding (tie_word_embeddings), that of '{other.label}' is not; "
                "set tied=untie to write a head of its own"
            )
        for model, own, is_tied in zip(models, names, tied, strict=True):
            if is_tied:
                _tie(model, own, embedding, head, keep)
    _compare_names(models, names, blocks, settings, found)
    shared = set(names[0]).intersection(*names[1:])
    return {name: [own[name] for own in names] for name in names[0] if name in shared}, all(tied) and keep


def _tie(model: Model, own: dict[str, str], embedding: str, head: str, keep: bool) -> None:
    """Take the head of a tied model for what it is: its embedding."""
    if isinstance(model, AdaptedCheckpoint):
        changed = {embedding, head} & (model.adapter.modules.keys() | model.adapter.saved.keys())
        if changed and keep:
            raise UserError(
                f"'{model.label}': the adapter changes '{min(changed)}', which is embedding and head at once in its "
                "base; set tied=untie to write a head of its own"
            )
    if head in own and embedding in own:
        _check_equal(model, embedding, head)
        if keep:
            del own[head]
    elif embedding in own and not keep:
        own[head] = embedding


def _check_equal(model: Model, embedding: str, head: str) -> None:
    info = model.tensors[embedding]
    same = model.tensors[head].shape == info.shape and all(
        torch.equal(model.read(embedding, start, stop), model.read(head, start, stop))
        for start, stop in ranges(info.size)
    )
    if not same:
        raise UserError(
            f"'{model.label}': tie_word_embeddings is true, but '{head}' and '{embedding}' differ in its files; set "
            "tie_word_embeddings to false in its config.json, or remove one of the two"
        )


def _compare_names(
    models: Sequence[Model],
    names: Sequence[dict[str, str]],
    blocks: Sequence[Blocks],
    settings: MergeSettings,
    found: Agreement,
) -> None:
    union = {name: None for own in names for name in own}
    for model, own in zip(models, names, strict=True):
        missing = [name for name in union if name not in own]
        if not missing:
            continue
        owner = next(other for other, others in zip(models, names, strict=True) if missing[0] in others)
        text = f"{_listed(missing)} of '{owner.label}' {'is' if len(missing) == 1 else 'are'} not in '{model.label}'"
        needed = [name for name in missing if blocks[0].needs(name)]
        if needed or "extra_tensors" not in settings.allow:
            advice = (
                "" if needed else "; the architecture does not need them, add allow=[extra_tensors] to leave them out"
            )
            raise UserError(text + advice)
        found.notes.append(f"{text}: left out")


def _fit(
    name: str, places: list[str], models: Sequence[Model], blocks: Blocks, settings: MergeSettings, found: Agreement
) -> Fit:
    shapes = [model.tensors[place].shape for model, place in zip(models, places, strict=True)]
    if len(set(shapes)) == 1:
        return Fit(places, shapes[0])
    described = ", ".join(f"{list(shape)} in '{model.label}'" for model, shape in zip(models, shapes, strict=True))
    resizable = name in (f"{blocks.input_embedding}.weight", f"{blocks.head}.weight", f"{blocks.head}.bias")
    if not resizable or len({shape[1:] for shape in shapes}) > 1 or blocks.model.config.architectures is None:
        raise UserError(f"tensor '{name}' has different shapes: {described}")
    if settings.embeddings == "refuse":
        raise UserError(
            f"tensor '{name}' has different numbers of rows: {described}; set embeddings=crop (rows that all have) or "
            "embeddings=pad (further rows from the first model that has them)"
        )
    rows = [shape[0] for shape in shapes]
    least, most = min(rows), max(rows)
    kept = least if settings.embeddings == "crop" else most
    found.vocabulary = kept
    what = f"cropped to {least} rows" if kept == least else f"rows {least} to {most - 1} copied from one model"
    found.notes.append(f"'{name}': {described}: {what}")
    rest = None if kept == least else rows.index(most)
    return Fit(places, (kept, *shapes[0][1:]), common=least, rest=rest)


def _dtype_notes(models: Sequence[Model]) -> list[str]:
    kinds = {
        model.label: sorted({str(info.dtype).removeprefix("torch.") for info in model.tensors.values()})
        for model in models
    }
    if len({tuple(kind) for kind in kinds.values()}) == 1:
        return []
    return ["dtypes differ: " + ", ".join(f"{'/'.join(kind)} in '{label}'" for label, kind in kinds.items())]


def _base_notes(models: Sequence[Model]) -> list[str]:
    """Say which adapters are folded into another model than they name."""
    return [
        f"'{model.adapter.label}' names the base {model.adapter.base} and is folded into '{model.base.label}'"
        for model in models
        if isinstance(model, AdaptedCheckpoint)
        and model.adapter.base not in ("", model.base.label)
        and Path(model.adapter.base).expanduser().resolve() != model.base.folder.resolve()
    ]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:SHOWN])
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"tensor {shown}" if len(names) == 1 else f"tensors {shown}{more}"
