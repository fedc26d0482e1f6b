"""Records in what is built which commit it was built from, since an installed package lies in no repository.

``reproalign/common/commit.json`` of a wheel or an sdist is what a run's record has under ``git``. An editable install
has none: there the repository is asked at every run. A wheel made from an sdist keeps the sdist's.
"""

import json
import subprocess
import tempfile
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

INSIDE = "reproalign/common/commit.json"


class RecordedCommit(BuildHookInterface):
    """Adds the file."""

    def initialize(self, version: str, build_data: dict) -> None:
        if version == "editable" or (Path(self.root) / "src" / INSIDE).is_file():
            return
        try:
            commit, changed = self._git("rev-parse", "HEAD"), self._git("status", "--porcelain")
            self._git("ls-files", "--error-unmatch", "pyproject.toml")  # else: somebody else's repository
        except (OSError, subprocess.SubprocessError):
            return
        self.folder = tempfile.TemporaryDirectory()
        file = Path(self.folder.name) / "commit.json"
        file.write_text(json.dumps({"commit": commit, "dirty": bool(changed)}), encoding="utf-8")
        place = INSIDE if self.target_name == "wheel" else f"src/{INSIDE}"
        build_data["force_include"][str(file)] = place

    def _git(self, *words: str) -> str:
        command = ["git", "-C", self.root, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
