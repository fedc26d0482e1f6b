"""The options of ``ama adapt`` with every default put in, checked as far as that needs no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import SchedulerType

from reproalign.ama.adapt.checks import check_epsilons, check_models, check_released, check_reward, check_rows
from reproalign.ama.adapt.config import AdaptConfig
from reproalign.ama.adapt.rows import PLAIN, Form
from reproalign.ama.levels import check_level
from reproalign.ama.ratios import RatioRegularizer, regularizer_from_code
from reproalign.ama.rules import AmaRules, rules_of
from reproalign.common.config.text import LAYOUTS
from reproalign.common.errors import UserError, choose
from reproalign.common.text.templates import check_separator

SOLVERS = {"likelihood": ("published", "exact"), "labelled": ("published", "exact"), "reward": ("search",)}
SCHEDULES = {
    "cosine": SchedulerType.COSINE,
    "linear": SchedulerType.LINEAR,
    "constant": SchedulerType.CONSTANT_WITH_WARMUP,
}


@dataclass(frozen=True)
class SolverSteps:
    """How the published solver steps; see :class:`~.config.PublishedConfig`."""

    learning_rate: float
    schedule: SchedulerType
    warmup_ratio: float
    epochs: int
    batch_size: int
    weight_decay: float
    processes: int
    save_steps: int


@dataclass(frozen=True)
class Penalty:
    """The regulariser in force.

    Attributes:
        regularizer: R.
        weight: what R is multiplied with.
        reduction: ``group`` or ``linear``.
    """

    regularizer: RatioRegularizer
    weight: float
    reduction: str


@dataclass(frozen=True)
class AdaptSettings:
    """What ``ama adapt`` does; the fields are AdaptConfig's of the same names unless said.

    Attributes:
        variant: its rules.
        base: α on pre.
        epsilons: of the parametrisation, one or several to choose from.
        bounded: ratios stay in [0, 1].
        form: of the rows.
        penalty: None if its weight is 0.
    """

    variant: AmaRules
    base: float
    parts: str
    tensors: str
    head: str | None
    constraint: str
    normalisation: str
    bounded: bool
    epsilons: tuple[float, ...]
    objective: str
    solver: str
    form: Form
    steps: SolverSteps
    penalty: Penalty | None

    @property
    def several(self) -> bool:
        """There is an ε to be chosen."""
        return len(self.epsilons) > 1


def check_options(config: AdaptConfig) -> AdaptSettings:
    """Put the defaults in and check every key.

    Raises:
        UserError: naming the key that is wrong, missing, or without meaning beside the others.
    """
    variant = rules_of(config.variant)
    objective = config.objective
    solver = choose("solver", config.solver or SOLVERS[objective][0], SOLVERS[objective])
    check_models(config)
    base = config.alpha if config.alpha_on == "pre" else 1 - config.alpha
    if variant.release_loop:
        check_released(config, solver)
    check_level(config.parts)
    epsilons = check_epsilons(config.epsilon)
    check_rows(config, objective)
    check_reward(config, objective, several=len(epsilons) > 1)
    return AdaptSettings(
        variant=variant,
        base=base,
        parts=config.parts,
        tensors=config.tensors or variant.learned_tensors,
        head=config.head,
        constraint=config.constraint,
        normalisation=_normalisation(config, solver),
        bounded=(config.bounds or ("none" if solver == "published" else "unit")) == "unit",
        epsilons=epsilons,
        objective=objective,
        solver=solver,
        form=_form(config, solver, variant.loss_on),
        steps=_steps(config, variant.published),
        penalty=_penalty(config, objective, variant),
    )


def _normalisation(config: AdaptConfig, solver: str) -> str:
    if solver != "published" and config.normalisation != "mean":
        raise UserError(f"normalisation={config.normalisation} is of solver=published; the mean is kept otherwise")
    if config.normalisation == "sum" and config.constraint != "mean":
        raise UserError("normalisation=sum is eq. 11 as printed, over groups; set constraint=mean")
    return config.normalisation


def _form(config: AdaptConfig, solver: str, loss_on: str) -> Form:
    layouts = (*LAYOUTS, PLAIN) if config.objective == "labelled" else LAYOUTS
    layout = choose("layout", config.layout, layouts)
    if layout != PLAIN:
        check_separator(layout, config.response_separator)
    packing = config.packing or ("blocks" if solver == "published" else "none")
    return Form(
        layout=layout,
        response_separator=config.response_separator,
        loss_on=config.loss_on or loss_on,
        packing=packing,
        block_size=config.block_size,
        max_length=config.max_length,
    )


def _steps(config: AdaptConfig, defaults: Mapping[str, Any]) -> SolverSteps:
    """Return the options of the published solver, with ``published`` of the variant's rules where they are null."""
    given = {name: value for name, value in vars(config.published).items() if value is not None}
    chosen = {"learning_rate": 2e-5, **defaults, **given}
    return SolverSteps(**{**chosen, "schedule": SCHEDULES[chosen["schedule"]]})


def _penalty(config: AdaptConfig, objective: str, variant: AmaRules) -> Penalty | None:
    kind = variant.regularizer if config.regularizer is None else config.regularizer
    weight = variant.reg_alpha if config.reg_alpha is None else config.reg_alpha
    if objective == "reward" and (kind is not None or weight):
        raise UserError("regularizer and reg_alpha have no meaning for objective=reward; remove them")
    if kind is None:
        if weight or config.reg_weighting or config.reg_center is not None or config.reg_reduction:
            raise UserError("regularizer is not set; set regularizer=l1, or remove the other reg_… keys")
        return None
    if isinstance(kind, int | float) or str(kind)[:1].isdigit():
        if config.reg_weighting is not None or config.reg_center is not None:
            raise UserError(f"regularizer={kind} is a code that says reg_weighting and reg_center too; remove them")
        regularizer = regularizer_from_code(kind)
    else:
        regularizer = RatioRegularizer(kind, config.reg_weighting or "none", config.reg_center)
    reduction = config.reg_reduction or variant.reg_reduction
    return Penalty(regularizer, weight, reduction) if weight else None
