"""Tiny models and tokenizers made from scratch: offline, deterministic, and enough to run every code path.

Public, because the tests of paper packages use it and so may yours.
"""

from reproalign.common.testing.golden import assert_matches, load_adapters, load_golden, parametrize_golden
from reproalign.common.testing.models import TINY_MODELS, save_tiny, tiny_folder, tiny_model, tiny_reward_model
from reproalign.common.testing.processes import refusal, run_command
from reproalign.common.testing.recipes import composed
from reproalign.common.testing.tokenizers import TINY_TOKENIZERS, tiny_tokenizer

__all__ = [
    "TINY_MODELS",
    "TINY_TOKENIZERS",
    "assert_matches",
    "composed",
    "load_adapters",
    "load_golden",
    "parametrize_golden",
    "refusal",
    "run_command",
    "save_tiny",
    "tiny_folder",
    "tiny_model",
    "tiny_reward_model",
    "tiny_tokenizer",
]
