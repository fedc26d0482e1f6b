"""Label files as the release's ``data_clustering.py`` names and cuts them: one for each file of rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reproalign.common.files import write_text


def write_released_labels(
    folder: Path, model: str, labels: NDArray[np.int64], sizes: Mapping[str, int], clusters: int
) -> list[Path]:
    """Write ``<last part of the model's name>_fp16_output_cluster<K>/<set>.json`` for each data set.

    The released training script reads these beside the files of rows. The name says fp16 and output whatever was
    embedded, and is empty before the underscore if the model's name ends in a slash (ERRATA Q21).

    Args:
        folder: gets them.
        model: as given.
        labels: of all rows, set after set.
        sizes: set -> rows, in order.
        clusters: K.

    Returns:
        The files.
    """
    name = f"{model.split('/')[-1]}_fp16_output_cluster{clusters}"
    written, start = [], 0
    for label, size in sizes.items():
        written.append(folder / name / f"{label}.json")
        write_text(written[-1], json.dumps(labels[start : start + size].tolist()))
        start += size
    return written
