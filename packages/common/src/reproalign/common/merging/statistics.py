"""Files of statistics of a model: what Fisher merging, RegMean and elastic weight consolidation read.

A folder of statistics holds one or more ``*.safetensors`` and ``statistics.json``. Tensors have the names of the
model's own tensors (``model.layers.0.mlp.up_proj.weight``: of the model, or of the base of an adapter, whose adapter is
folded in), float32, each tensor in one file. What they are depends on the kind:

``fisher``
    F of the tensor's own shape, F_i = 1/N Σ_n (∂ log p(y_n | x_n) / ∂θ_i)² ≥ 0: the diagonal of the empirical Fisher
    information over N rows, log p being the sum over the supervised tokens of a row (arXiv 2111.09832, Section 3.2,
    with the labels of the data).
``gram``
    G (columns, columns), G = 1/T Σ_t x_t x_tᵀ over the T tokens of all rows: the Gram matrix of the inputs x of the
    linear layer whose weight has the name (arXiv 2212.09849, Section 3.2); columns is the number of its inputs.

Statistics may leave tensors out, which then count as not measured. ``statistics.json`` is an object with ``format``
(1), ``kind``, ``rows`` (N), ``tokens`` (supervised ones for ``fisher``, all for ``gram``), ``labels`` (``data`` or
``model``: arg-max labels; null for ``gram``) and ``model`` (as it was named). A single safetensors file of the same
tensors, without ``statistics.json``, is read too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from reproalign.common.errors import UserError
from reproalign.common.files import atomic_path, write_json
from reproalign.common.merging.checkpoint import Checkpoint
from reproalign.common.merging.config import STATISTICS
from reproalign.common.merging.headers import read_json
from reproalign.common.records.handed_on import as_written

FACTS = "statistics.json"
FORMAT = 1


def open_statistics(name: str, kind: str, key: str = "statistics") -> Checkpoint:
    """Open a folder or file of statistics; tensors are then read slice by slice, and closed by the caller.

    Args:
        name: the folder, a run folder that holds it as ``statistics``, or one safetensors file.
        kind: what is needed, ``fisher`` or ``gram``.
        key: the option that names it; errors say so.

    Raises:
        UserError: if there is none, it is unfinished, or of another kind.
    """
    path = Path(name).expanduser()
    if (path / "statistics" / FACTS).is_file():
        path = path / "statistics"
    if not path.exists():
        raise UserError(f"{key}: {name}: no such file or folder")
    as_written(path)
    found = statistics_facts(path)
    if found is not None and found["kind"] != kind:
        raise UserError(f"{key}: {name} holds statistics of kind {found['kind']}, and {kind} is needed")
    return Checkpoint(name, path)


def statistics_facts(path: Path) -> dict[str, Any] | None:
    """Read ``statistics.json`` of a folder; None for a plain file, or a folder without it.

    Raises:
        UserError: if it is of a format that is not known here.
    """
    file = path / FACTS
    if not file.is_file():
        return None
    facts = read_json(file)
    if facts.get("format") != FORMAT or facts.get("kind") not in STATISTICS:
        raise UserError(f"{file}: not a file of statistics that is known here (format {FORMAT})")
    return facts


def write_statistics(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write statistics into one file, whole or not at all, in float32."""
    with atomic_path(file) as temporary:
        plain = {name: tensor.float().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(plain, temporary, metadata={"format": "pt"})


def write_facts(folder: Path, *, kind: str, rows: int, tokens: int, labels: str | None, model: str) -> None:
    """Write ``statistics.json``, which says that the folder is whole."""
    facts = {"format": FORMAT, "kind": kind, "rows": rows, "tokens": tokens, "labels": labels, "model": model}
    write_json(folder / FACTS, facts)
