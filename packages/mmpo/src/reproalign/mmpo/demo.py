"""``python -m reproalign.mmpo.demo [key=value …]``: the recipe ``smollm2-135m`` in a new folder under ``runs``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from reproalign.common.records.folder import read_record
from reproalign.mmpo.cli import main


def demo_words(overrides: Sequence[str], runs: Path = Path("runs")) -> list[str]:
    """Return the words of the demo's command; finished earlier demos keep their folders, an unfinished one goes on."""
    words = ["train", "experiment=smollm2-135m", *overrides]
    if any(word.startswith("output_dir=") for word in overrides):
        return words
    names = ("demo" if number == 1 else f"demo-{number}" for number in count(1))
    return [*words, f"output_dir={next(runs / name for name in names if not _is_done(runs / name))}"]


def _is_done(folder: Path) -> bool:
    return (folder / "run.json").is_file() and read_record(folder)["status"] == "finished"


if __name__ == "__main__":
    words = demo_words(sys.argv[1:])
    print(f"mmpo {' '.join(words)}", file=sys.stderr)
    raise SystemExit(main(words))
