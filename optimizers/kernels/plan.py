"""What kernels do of one group's step, and what is left to the eager engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from operator import is_
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from optimizers.batch import Batch
from optimizers.core import DecayMode, Rule, State, Values
from optimizers.kernels import policy
from optimizers.kernels.around import AroundTable
from optimizers.kernels.build import NoKernel, tell_once
from optimizers.kernels.kernel import kernel_of
from optimizers.kernels.reflect import Reflections, reflect_by
from optimizers.kernels.source import Form
from optimizers.kernels.table import (
    CONTIGUOUS,
    GRAD,
    REAL,
    Middle,
    Signature,
    Table,
    factor,
    holds,
    takes,
)
from optimizers.kernels.trace import Layout, Untraceable, shape_of
from optimizers.parts import Core, Reflect
from optimizers.precision import HALF, compute_dtype
from optimizers.scheduling import zero_pattern

X = TypeVar("X")


class Wish(NamedTuple):
    """What a group's step asks for; as long as it stays equal, so may the tables.

    ``units`` says that gradients are scaled unit by unit (adaptive clipping).
    """

    rule: Rule
    mode: DecayMode
    options: tuple[object, ...]
    zeros: tuple[bool, ...]
    low_precision: str
    units: bool

    @classmethod
    def of(
        cls, rule: Rule, mode: DecayMode, values: Values, low_precision: str, units: bool
    ) -> Wish:
        """What a group with these values asks for."""
        options = tuple(map(vars(values).__getitem__, rule.options))
        return cls(rule, mode, options, zero_pattern(rule, values), low_precision, units)


@dataclass
class Plan:
    """The parameters of a group: those in tables, ``rest``, and ``absent`` without a gradient."""

    wish: Wish
    params: list[Tensor]
    asked: tuple[Any, ...] = ()  # what the wish was made of
    batch: Batch | None = None  # of tables alone, which takes other numbers in the next step
    tables: list[Table] = field(default_factory=list)
    rest: list[Tensor] = field(default_factory=list)
    absent: list[Tensor] = field(default_factory=list)
    found: dict[Signature, list[Tensor]] = field(default_factory=dict)  # waiting for `build`
    bases: list[tuple[torch.dtype, int]] = field(default_factory=list)  # of the rest, and how large
    reflect: Reflect | None = None

    def build(self, *, use: bool) -> None:
        """Make tables of what was found, or leave it to the eager engine."""
        if self.bases and use:
            self.reflect = or_none(partial(reflect_by, reflections(self.bases)))
        if not self.found:
            return
        for signature, params in self.found.items() if use else ():
            kind = Table if signature.middle is None else AroundTable
            table = or_none(partial(kind, signature, params, [*map(GRAD, params)]))
            self.tables += [] if table is None else [table]
        taken = {id(param) for table in self.tables for param in table.params}
        gone = {id(param) for param in self.absent}
        self.rest = [p for p in self.params if id(p) not in taken and id(p) not in gone]
        self.found = {}

    def holds(self, wish: Wish, params: Sequence[Tensor]) -> bool:
        """Whether this is still how the step has to be done, if states are where they were."""
        return (
            (self.wish is wish or self.wish == wish)
            and len(params) == len(self.params)
            and all(map(is_, params, self.params))
            and not (self.absent and any(param.grad is not None for param in self.absent))
            and not (self.rest and any(param.grad is None for param in self.rest))
            and all(map(Table.same, self.tables))
        )


def or_none(make: Callable[[], X]) -> X | None:
    """What needs a compiler, or None where that fails; says so once."""
    try:
        return make()
    except NoKernel as error:
        tell_once(f"optimizers run without compiled kernels: {error}")
        return None


def reflections(bases: Iterable[tuple[torch.dtype, int]]) -> list[Reflections]:
    """What bases of these precisions need."""
    return [*map(Reflections, dict.fromkeys(dtype for dtype, _ in bases))]


class Signatures:
    """The signature of each parameter of a group, found once for all that are alike."""

    def __init__(self, wish: Wish, values: Values) -> None:
        self.wish, self.values = wish, values
        if wish.rule.model is not None:  # tracing has to know the names
            initial = wish.rule.model.initial(values)
            self.values = Values(**{**initial, **vars(values)})
        self.known: dict[object, Signature | None] = {}

    def of(self, param: Tensor, state: State) -> Signature | None:
        """What a parameter with this state (or none) needs, or None if no kernel can do it."""
        kinds = tuple((key, value.dtype) for key, value in state.items())
        core = self.wish.rule.core
        storage = core and core.storage(param, self.values)
        kind = shape_of(self.wish.rule, param.shape)
        key = (param.dtype, min(param.dim() + param.is_complex(), 3), kind, kinds, storage)
        if key not in self.known:
            self.known[key] = self.find(param, state)
        return self.known[key]

    def find(self, param: Tensor, state: State) -> Signature | None:
        """As `of`, without a memory."""
        wish, values = self.wish, self.values
        dtype = REAL.get(param.dtype, param.dtype)
        if wish.low_precision == "stochastic" and dtype in HALF:
            return None
        wide = compute_dtype(dtype)
        own = {key: value for key, value in state.items() if key not in ("step", "compensation")}
        shape = (*param.shape, 2) if param.is_complex() else param.shape
        fresh = wish.rule.state_layout(shape, wide, values)
        factors = [value for value in fresh.values() if value.dim() and value.shape != shape]
        if not all(factor(value, param) for value in factors):
            return None
        if "step" not in state or not fresh.keys() <= own.keys():
            own = fresh  # as it will be allocated
        try:
            layout = Layout.of(wish.rule, values, wide, own, shape)
        except Untraceable:  # bases, which may have the shape of a factor or of the parameter
            return None
        form = Form(dtype, wish.low_precision == "kahan" and dtype in HALF, dtype)
        core = wish.rule.core
        if core is not None:
            return self.around(core, param, layout, form)
        kernel = kernel_of(wish.rule, wish.mode, layout, form, values)
        if kernel is None:
            return None
        if wish.rule.model is None:
            return Signature(param.dtype, kernel)
        share = kernel_of(wish.rule, wish.mode, layout, form, values, "share")
        return Signature(param.dtype, kernel, share) if share else None

    def around(self, core: Core, param: Tensor, layout: Layout, form: Form) -> Signature | None:
        """The kernels before and after a rule's core."""
        storage = core.storage(param, self.values)
        leads = Form(storage, False, form.grad)
        follows = Form(form.storage, form.compensated, storage)
        before, after = (
            kernel_of(self.wish.rule, self.wish.mode, layout, own, self.values, part)
            for own, part in ((leads, "before"), (follows, "after"))
        )
        if before is None or after is None:
            return None
        return Signature(param.dtype, before, middle=Middle(core, storage, after))


def sort_params(
    wish: Wish, values: Values, params: Sequence[Tensor], states: Mapping[Tensor, State]
) -> Plan:
    """Find out which of a group's parameters a kernel could take."""
    plan = Plan(wish, list(params))
    signatures = Signatures(wish, values)
    for param in params:
        grad, state = param.grad, states.get(param, {})
        if grad is None:
            plan.absent.append(param)
            continue
        fits = takes(param, grad) and holds(param, state)
        fits = fits and (not wish.units or (param.is_contiguous() and grad.is_contiguous()))
        signature = signatures.of(param, state) if fits else None
        if signature is not None and (signature.kernel.factored or signature.middle):
            arrays = (param, grad, *state.values())
            whole = all(map(CONTIGUOUS, arrays)) and not wish.units
            signature = signature if whole else None
        if signature is None:
            plan.rest.append(param)
        else:
            plan.found.setdefault(signature, []).append(param)
    if wish.rule.slices is not None:
        for param in plan.rest:
            wide = compute_dtype(param.dtype)
            sizes = wish.rule.slices.bases(wish.rule.state_layout(param.shape, wide, values))
            plan.bases += [(wide, size) for size in sizes if param.is_cpu]
    return plan


class Planner:
    """The plans of an optimizer's groups, and its choice of an engine."""

    def __init__(self, engine: str) -> None:
        self.engine = engine
        self.known: list[Plan] = []
        self.held = False  # whether the last plans were those of the step before
        self.states: list[object] = []  # parameters that have state, and then their states
        self.use: bool | None = None if engine != "eager" else False  # None: not chosen yet

    def plans(
        self,
        groups: Sequence[dict[str, Any]],
        asked: Sequence[tuple[Rule, DecayMode, Values, str, bool]],
        states: Mapping[Tensor, State],
        steps: int | None,
    ) -> list[Plan]:
        """What to do for each group in this step, of which ``asked`` makes the wish.

        ``steps`` is how many are left, if known.
        """
        plans = []
        same = self.use is not False and self.same_states(states)
        for number, (group, own) in enumerate(zip(groups, asked, strict=True)):
            params = group["params"]
            known = self.known[number] if number < len(self.known) else None
            wish = known.wish if known is not None and known.asked == own else Wish.of(*own)
            if self.use is False:
                rest = [param for param in params if param.grad is not None]
                known = Plan(wish, params, rest=rest)
            elif known is None or not (same and known.holds(wish, params)):
                known = sort_params(wish, own[2], params, states)
            known.asked = own
            plans.append(known)
        self.held = all(map(is_, plans, self.known)) and len(plans) == len(self.known)
        if self.held:
            return plans
        found = [item for plan in plans for item in plan.found.items()]
        bases = [basis for plan in plans for basis in plan.bases]
        if (found or bases) and self.use is None:
            self.choose(groups, found, bases, steps)
        for plan in plans:
            plan.build(use=bool(self.use))
        self.known = plans
        return plans

    def same_states(self, states: Mapping[Tensor, State]) -> bool:
        """Whether each parameter has the state that it had when last remembered."""
        return 2 * len(states) == len(self.states) and all(
            map(is_, chain(states, states.values()), self.states)
        )

    def remember(self, states: Mapping[Tensor, State]) -> None:
        """Take note of whose state is which, after tables have been pointed to them."""
        if self.use:
            self.states = [*states, *states.values()]

    def choose(
        self,
        groups: Sequence[dict[str, Any]],
        found: Sequence[tuple[Signature, list[Tensor]]],
        bases: Sequence[tuple[torch.dtype, int]],
        steps: int | None,
    ) -> None:
        """Choose for the rest of the run, or go on with what it began with."""
        before = policy.chosen(groups[0]) if self.engine == "auto" else None
        engine = before or self.engine
        needs: list[Signature | Reflections] = [*dict.fromkeys(signature for signature, _ in found)]
        needs += reflections(bases)
        params = [param for _, some in found for param in some]
        saved = policy.saving(params, [size for _, size in bases])
        self.use = policy.use_kernels(engine, needs, saved, steps)
        for group in groups if self.engine == "auto" else ():
            group[policy.CHOICE] = "compiled" if self.use else "eager"
