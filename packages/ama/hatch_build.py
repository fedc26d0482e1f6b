"""What this package depends on: the shared core, and what ``requires`` in pyproject.toml adds.

In a checkout the core is the folder beside this one, so that ``pip install packages/mmpo`` works by itself. Where
there is no such folder, or with ``REPROALIGN_NO_SIBLINGS`` set, it is the version range on the package index. Set the
variable for several editable installs in one command (pip sees a conflict otherwise), and for what is to be published:
an sdist keeps what it was built with.
"""

import os
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

RANGE = ">=0.1,<0.2"


class SiblingDependency(MetadataHookInterface):
    """Fills in ``dependencies``."""

    def update(self, metadata: dict) -> None:
        common = Path(self.root).parent / "common"
        beside = (common / "pyproject.toml").is_file() and not os.environ.get("REPROALIGN_NO_SIBLINGS")
        core = f"reproalign-common @ {common.resolve().as_uri()}" if beside else f"reproalign-common{RANGE}"
        metadata["dependencies"] = [core, *self.config.get("requires", [])]
