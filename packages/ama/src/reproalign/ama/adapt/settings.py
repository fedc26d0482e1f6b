"""The options of ``ama adapt`` with every default put in, checked as far as that needs no model."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import SchedulerType

from reproalign.ama.adapt.checks import check_epsilons, check_models, check_released, check_reward, check_rows
from reproalign.ama.adapt.config import AdaptConfig
from reproalign.ama.adapt.rows import PLAIN, Form
from reproalign.ama.parts import check_level
from reproalign.ama.ratios import (
    Regularizer,
    initial_raw,
    regularizer_from_code,
)
from reproalign.ama.tensors import default_tensors
from reproalign.common.errors import UserError, choose
from reproalign.common.generation.sampling import LAYOUTS
from reproalign.common.text.templates import check_separator

OBJECTIVES = ("likelihood", "labelled", "reward")
SOLVERS = {"likelihood": ("published", "exact"), "labelled": ("published", "exact"), "reward": ("search",)}
VARIANTS = ("paper", "released")
SCHEDULES = {
    "cosine": SchedulerType.COSINE,
    "linear": SchedulerType.LINEAR,
    "constant": SchedulerType.CONSTANT_WITH_WARMUP,
}
RELEASED_CODE, RELEASED_WEIGHT = "0.2", 1e-4


@dataclass(frozen=True)
class Steps:
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

    regularizer: Regularizer
    weight: float
    reduction: str


@dataclass(frozen=True)
class Settings:
    """What ``ama adapt`` does; the fields are AdaptConfig's of the same names unless said.

    Attributes:
        base: α on pre.
        epsilons: of the parametrisation, one or several to choose from.
        bounded: ratios stay in [0, 1].
        form: of the rows.
        penalty: None if its weight is 0.
    """

    released: bool
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
    steps: Steps
    penalty: Penalty | None

    @property
    def several(self) -> bool:
        """There is an ε to be chosen."""
        return len(self.epsilons) > 1


def check_options(config: AdaptConfig) -> Settings:
    """Put the defaults in and check every key.

    Raises:
        UserError: naming the key that is wrong, missing, or without meaning beside the others.
    """
    released = config.variant == "released"
    objective = config.objective
    solver = choose("solver", config.solver or SOLVERS[objective][0], SOLVERS[objective])
    check_models(config)
    base = config.alpha if config.alpha_on == "pre" else 1 - config.alpha
    if not 0 < config.alpha < 1:
        initial_raw(config.alpha)
    if released:
        check_released(config, solver)
    check_level(config.parts)
    epsilons = check_epsilons(config.epsilon)
    check_rows(config, objective)
    check_reward(config, objective, several=len(epsilons) > 1)
    return Settings(
        released=released,
        base=base,
        parts=config.parts,
        tensors=config.tensors or default_tensors(config.variant, learned=True),
        head=config.head,
        constraint=config.constraint,
        normalisation=_normalisation(config, solver),
        bounded=(config.bounds or ("none" if solver == "published" else "unit")) == "unit",
        epsilons=epsilons,
        objective=objective,
        solver=solver,
        form=_form(config, solver, released=released),
        steps=_steps(config, released=released),
        penalty=_penalty(config, objective, released=released),
    )


def _normalisation(config: AdaptConfig, solver: str) -> str:
    if solver != "published" and config.normalisation != "mean":
        raise UserError(f"normalisation={config.normalisation} is of solver=published; the mean is kept otherwise")
    if config.normalisation == "sum" and config.constraint != "mean":
        raise UserError("normalisation=sum is equation 11 as printed, over groups; set constraint=mean")
    return config.normalisation


def _form(config: AdaptConfig, solver: str, *, released: bool) -> Form:
    layouts = (*LAYOUTS, PLAIN) if config.objective == "labelled" else LAYOUTS
    layout = choose("layout", config.layout, layouts)
    if layout != PLAIN:
        check_separator(layout, config.response_separator)
    packing = config.packing or ("blocks" if solver == "published" else "none")
    return Form(
        layout=layout,
        response_separator=config.response_separator,
        loss_on=config.loss_on or ("all" if released else "response"),
        packing=packing,
        block_size=config.block_size,
        max_length=config.max_length,
    )


def _steps(config: AdaptConfig, *, released: bool) -> Steps:
    given, exact, search = config.published, config.exact, config.search
    positive: dict[str, float] = {
        "published.learning_rate": 2e-5 if given.learning_rate is None else given.learning_rate,
        "published.epochs": given.epochs,
        "published.processes": given.processes,
        "published.batch_size": given.batch_size or (2 if released else 1),
        "published.save_steps": given.save_steps,
        "exact.batch_size": exact.batch_size,
        "exact.tolerance": exact.tolerance,
        "search.radius": search.radius,
        "search.tolerance": search.tolerance,
    }
    if given.processes > 1 and not released:
        raise UserError("published.processes is of variant=released; launch=ddp shares rows between processes")
    warmup = (0.0 if released else 0.03) if given.warmup_ratio is None else given.warmup_ratio
    decay = (0.01 if released else 0.0) if given.weight_decay is None else given.weight_decay
    return Steps(
        learning_rate=positive["published.learning_rate"],
        schedule=SCHEDULES[given.schedule or ("linear" if released else "cosine")],
        warmup_ratio=warmup,
        epochs=given.epochs,
        batch_size=int(positive["published.batch_size"]),
        weight_decay=decay,
        processes=given.processes,
        save_steps=given.save_steps,
    )


def _penalty(config: AdaptConfig, objective: str, *, released: bool) -> Penalty | None:
    kind = config.regularizer if config.regularizer is not None else (RELEASED_CODE if released else None)
    weight = config.reg_alpha if config.reg_alpha is not None else (RELEASED_WEIGHT if released else 0.0)
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
        regularizer = Regularizer(kind, config.reg_weighting or "none", config.reg_center)
    reduction = choose(
        "reg_reduction", config.reg_reduction or ("linear" if released else "group"), ("group", "linear")
    )
    return Penalty(regularizer, weight, reduction) if weight else None
