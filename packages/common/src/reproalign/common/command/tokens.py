"""``--show-tokens`` of a training verb, and ``reproalign tokens RUN``: the first rows as the model reads them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from reproalign.common.errors import PreviewedError, UserError
from reproalign.common.invocation import Invocation, carry_out

ROWS = 3


def show_tokens(invocation: Invocation, rows: int = ROWS) -> None:
    """Prepare the data of a training run as it would, print its first rows, and stop before its model is loaded.

    Nothing is written but the data's cache.

    Raises:
        UserError: for a verb that trains on no rows of its own.
    """
    from reproalign.common.text.shown import SHOW

    config: dict[str, Any] = invocation.config
    if "launch" not in config or "at_once" in config:
        raise UserError(f"'{invocation.verb}' trains on no rows of its own; show those of one of its runs")
    here = {**config["launch"], "strategy": "single", "processes": 1, "machines": 1, "machine_rank": 0}
    token = SHOW.set(rows)
    try:
        carry_out(replace(invocation, config={**config, "launch": here}, preview=config["launch"]))
    except PreviewedError:
        return
    finally:
        SHOW.reset(token)
    raise UserError(f"'{invocation.verb}' has no tokenised rows to show")
