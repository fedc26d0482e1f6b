"""Keys that many verbs have, declared once."""

from __future__ import annotations

from typing import Any, TypeVar

from reproalign.common.options.declare import option

Rules = TypeVar("Rules")

SEEDS = 2**32  # PyTorch takes more, NumPy does not
VARIANTS = {"paper": "as the paper's equations say", "released": "as the authors' published code computes"}
BACKENDS = {"auto": "vllm where it is installed and there is a GPU", "transformers": "", "vllm": ""}
RESUME: dict[str, Any] = {
    "help": "an interrupted run",
    "choices": {"auto": "go on from its last checkpoint", "never": "refuse its folder"},
    "also": "one of its checkpoint folders",
}
GO_ON: dict[str, Any] = {
    "help": "an interrupted run",
    "choices": {"auto": "go on with it, to the same bits", "never": "refuse its folder"},
}


def output_dir(help: str = "folder that the run writes; one that holds another run is refused") -> Any:
    """Declare the folder that a run writes."""
    return option(help=help)


def seed(default: Any = 42, *, help: str = "seed of everything that is drawn at random", null: str = "") -> Any:
    """Declare a seed: from 0 to 2³² - 1."""
    return option(default, help=help, null=null, at_least=0, at_most=SEEDS - 1)


def variant(default: str = "paper", *, help: str = "what is followed where paper and released code differ") -> Any:
    """Declare which of the two is followed where the paper and the released code differ."""
    return option(default, help=help, choices=VARIANTS)


def by_variant(variant: str, *, paper: Rules, released: Rules) -> Rules:
    """Return what a variant stands for, of a paper's two tables of rules."""
    return {"paper": paper, "released": released}[variant]
