"""``python -m faults [options]``, from the root of the repository; ``nox -s faults -- [options]``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "packages" / "common" / "tests"))  # the toy paper

from faults.drill import main

raise SystemExit(main())
