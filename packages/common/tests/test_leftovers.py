"""What dead processes left half made is removed, and what living ones make is not."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from reproalign.common.leftovers import OLD, make_beside, sweep_dead


def test_what_a_dead_process_was_making_is_removed_and_a_living_ones_is_kept(tmp_path):
    program = "import sys; from pathlib import Path; from reproalign.common.leftovers import make_beside; "
    program += "print(make_beside(Path(sys.argv[1])))"
    words = [sys.executable, "-c", program, str(tmp_path / "made")]
    dead = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    assert os.path.isdir(dead)
    living = [make_beside(tmp_path / "made"), make_beside(tmp_path / "other")]
    assert sorted(tmp_path.iterdir()) == sorted(living)


def test_what_cannot_be_known_to_be_dead_is_removed_when_it_is_old(tmp_path):
    kept = [tmp_path / name for name in ("0a1b", "notes", ".making-another-1-xyz")]
    removed = [tmp_path / name for name in (".making-another-2-xyz", ".building-abcd", "tmpabcd1234")]
    for path in (*kept, *removed):
        path.mkdir()
    for path in (*kept[:2], *removed):
        os.utime(path, (time.time() - 2 * OLD,) * 2)
    sweep_dead(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)
