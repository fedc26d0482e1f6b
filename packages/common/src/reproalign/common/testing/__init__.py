"""What tests need: golden vectors, commands in processes of their own, composed configurations.

Public, because the tests of paper packages use it and so may yours; no package imports it.
"""

from reproalign.common.testing.golden import assert_matches, load_adapters, load_golden, parametrize_golden
from reproalign.common.testing.processes import refusal, run_command
from reproalign.common.testing.recipes import composed

__all__ = [
    "assert_matches",
    "composed",
    "load_adapters",
    "load_golden",
    "parametrize_golden",
    "refusal",
    "run_command",
]
