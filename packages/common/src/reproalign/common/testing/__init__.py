"""What tests need: golden vectors, commands in processes of their own, logs, full disks, composed settings, facts.

Public, because the tests of paper packages use it and so may yours; no package imports it.
"""

from reproalign.common.testing.disk import file_limit
from reproalign.common.testing.facts import Fact, assert_facts, launch_facts, read_facts, recipe_config
from reproalign.common.testing.golden import assert_matches, load_adapters, load_golden, parametrize_golden
from reproalign.common.testing.logs import logged
from reproalign.common.testing.processes import refusal, run_command
from reproalign.common.testing.recipes import accept, accept_under_both_variants, composed, effective_batch

__all__ = [
    "Fact",
    "accept",
    "accept_under_both_variants",
    "assert_facts",
    "assert_matches",
    "composed",
    "effective_batch",
    "file_limit",
    "launch_facts",
    "load_adapters",
    "load_golden",
    "logged",
    "parametrize_golden",
    "read_facts",
    "recipe_config",
    "refusal",
    "run_command",
]
