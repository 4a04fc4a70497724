"""What an optimizer is: a row of data around one pure function.

    update(grad, param, state, hyper, t) -> (direction, new_state)

is written for ONE tensor and SCALAR hyperparameters, without a Python ``if`` on a number.
`advance` applies weight decay and learning rate for every rule. The caller decides what "one
tensor" and "scalar" are: eager tensors with floats, a compiled kernel with 0-D float64 tensors,
or a stack of K trials with (K,) hyperparameters under ``torch.func.vmap``.

``hyper`` carries each hyperparameter by name (``hyper.lr``, ``hyper.beta1``), each `Option`
(static: a rule may branch on it) and the shared scalars of a `ModelHook`. ``state`` is a flat
dict of tensors; a rule returns new tensors and never writes into what it was given.
``t`` counts from 1 the updates this state has absorbed, so a parameter whose gradient comes late
starts at 1.
Parameters arrive real (complex ones as pairs of reals) and in the precision of the arithmetic
(float32 for half precision parameters).

How a rule says what it needs:

- ``scope="element"``: entries do not see each other, so engines may cut, flatten and join tensors.
- ``scope="sums"``: they do through norms and sums over the whole tensor alone, whose number of
  dimensions is all that the rule asks of its shape (lamb, lars).
- ``scope="tensor"``: anything over one whole tensor, such as matrices (adafactor, muon).
- ``scope="model"``: entries alone, after sums over all parameters by a `ModelHook` (prodigy).
- ``state(param, hyper)`` allocates on the host with plain numbers. A 0-D tensor is a scalar per
  parameter (nadam's ``mu_product``); any other shape is allowed for scope "tensor" (factors,
  bases).
- ``points``: training and evaluation happen at different points (`Points`, schedule-free).
- ``observe``: folds an extra gradient into the state, called by ``opt.update_hessian()`` (sophia).
- ``blocks``: the same update for a big matrix in blocks of rows (adafactor); ``slices``: the same
  in place, slice by slice (soap); ``core``: the same with all but its middle entry by entry (muon).
  See `optimizers.parts`.
- ``partner``: parameters the rule cannot handle go to another rule in the same optimizer (muon).
- ``state_first``: checkpoints hold state for parameters that never had a gradient, too, because
  torch's optimizer for the rule expects it (adagrad).
- ``still_first``: the first gradient only fills the state, so the shell does not decay either
  (adopt).
- ``weight_decay_mode="inside"``: the rule itself reads ``hyper.weight_decay`` (lamb, lars).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isnan, nan, prod
from types import SimpleNamespace
from typing import Any, Literal, TypeAlias, overload

import torch
from torch import Tensor

from optimizers.meta import WithoutSympy
from optimizers.parts import Blocks, Core, Slices

Scalar: TypeAlias = float | Tensor
State: TypeAlias = dict[str, Tensor]
Values: TypeAlias = SimpleNamespace
Scope: TypeAlias = Literal["element", "sums", "tensor", "model"]
DecayMode: TypeAlias = Literal["l2", "decoupled", "independent", "inside", "none"]
BatchScaling: TypeAlias = Literal["linear", "sqrt", "none"]
Update: TypeAlias = Callable[[Tensor, Tensor, State, Values, Scalar], tuple[Tensor, State]]


@dataclass(frozen=True)
class Hyper:
    """One numeric hyperparameter: its default, the values that are valid, and where to search.

    ``low``, ``high`` bound the search; ``log`` searches the logarithm and ``complement`` searches
    ``1 - value`` (on the log scale for betas, where 0.9 and 0.999 are far apart). ``priority``
    says when a search may afford it: 1 always, 2 with a medium budget, 3 with a large one, 0
    never. ``source`` is where the range comes from. Valid values satisfy ``at_least <= value <=
    at_most`` and ``above < value < below``, and are whole numbers if ``integer``. ``optional``
    leaves the value to the rule when it is None, which a rule sees as NaN; ``unlimited`` allows
    infinity.
    """

    default: float
    low: float
    high: float
    log: bool = False
    doc: str = ""
    complement: bool = False
    priority: int = 0
    source: str = ""
    at_least: float = -inf
    at_most: float = inf
    above: float = -inf
    below: float = inf
    integer: bool = False
    optional: bool = False
    unlimited: bool = False

    @property
    def allowed(self) -> str:
        """The valid values in words, as used in error messages."""
        lower = f"{self.at_least:g} <= " if self.at_least > self.above else f"{self.above:g} < "
        upper = f" <= {self.at_most:g}" if self.at_most < self.below else f" < {self.below:g}"
        kind = ", a whole number" if self.integer else ", or None" if self.optional else ""
        return f"{lower}value{upper}{kind}"

    @property
    def argument(self) -> float | None:
        """The default as a constructor argument, where None stands for NaN."""
        return None if isnan(self.default) else self.default

    def validate(self, owner: str, name: str, value: object) -> None:
        """Raise ValueError, or TypeError for what is no number, unless the value is valid."""
        if not isinstance(value, int | float | Tensor) or isinstance(value, bool):
            raise TypeError(f"{owner}: {name}={value!r} is not a number; allowed: {self.allowed}")
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError(f"{owner}: Tensor {name} must be 1-element, not {value.numel()}")
        if (self.optional and value != value) or (self.unlimited and value == inf):
            return
        whole = isinstance(value, int) or not self.integer
        inside = self.at_least <= value <= self.at_most and self.above < value < self.below
        if not (whole and inside):
            raise ValueError(f"{owner}: {name}={value!r} is not valid; allowed: {self.allowed}")


@dataclass(frozen=True)
class Option:
    """One static choice, such as ``nesterov``; a rule may branch on it in Python."""

    default: bool | str | int | None
    choices: Sequence[bool | str | int | None]
    doc: str = ""

    @property
    def allowed(self) -> str:
        """The choices in words, as used in error messages."""
        if isinstance(self.choices, range):
            return f"{self.choices[0]}..{self.choices[-1]}"
        return ", ".join(map(repr, self.choices))

    def validate(self, owner: str, name: str, value: object) -> None:
        """Raise ValueError, in one line, unless the value is one of the choices."""
        if value not in self.choices:
            raise ValueError(f"{owner}: {name}={value!r} is not valid; allowed: {self.allowed}")


@dataclass(frozen=True)
class ModelHook:
    """Sums over all parameters, taken before any parameter moves (prodigy's distance estimate).

    ``initial(hyper)`` gives the shared scalars; ``partial(grad, param, state, hyper, t) -> (sums,
    new_state)`` is each parameter's contribution; ``combine(sums, shared, hyper, t) -> shared``
    turns the totals into new shared scalars, which `Rule.update` then reads as attributes of
    ``hyper``.
    """

    initial: Callable[[Values], dict[str, float]]
    partial: Callable[[Tensor, Tensor, State, Values, Scalar], tuple[dict[str, Tensor], State]]
    combine: Callable[[dict[str, Tensor], dict[str, Scalar], Values, Scalar], dict[str, Scalar]]


@dataclass(frozen=True)
class Points:
    """Where a rule evaluates, when not where it trains: a pure map from training to evaluation."""

    to_eval: Callable[[Tensor, State, Values], Tensor]


@dataclass(frozen=True)
class Partner:
    """The rule for parameters that ``handles(param)`` refuses.

    ``arguments`` takes each argument of that rule from one of this rule's own, so that they are
    validated and searched with it: ``{"lr": "adamw_lr", "weight_decay": "weight_decay", ...}``.
    """

    rule: str
    handles: Callable[[Tensor], bool]
    arguments: Mapping[str, str]


def no_conflict(values: Values) -> str | None:
    """The check of rules whose hyperparameters constrain each other in no way."""
    return None


@dataclass(frozen=True)
class Rule:
    """One optimizer as data; see the module docstring for ``update``, ``state`` and the hooks.

    ``hypers`` and then ``options`` are in constructor order; ``packs`` joins scalars into one
    argument, as torch does (``{"betas": ("beta1", "beta2")}``). ``batch_scaling`` says how the
    learning rate follows the batch size. ``linear`` rules step in proportion to the gradients, so
    that L2 decay shrinks their weights as decoupled decay does. ``summed`` names the number whose
    buffer sums past steps up without a weight: a steady step is 1 / (1 - it) times a single one.
    ``check(values)`` returns what is wrong with a combination of values, or None.
    ``torch_group`` is what the param groups of torch's optimizer for this rule say and ours do not:
    it goes into checkpoints, and a checkpoint that says otherwise is one of another rule.
    ``sparse`` is None for rules that refuse sparse gradients; for the others it says whether rows
    without a gradient stay as they are. ``equations`` is the rule in math, in the code's own names;
    ``when`` says when to choose it.
    """

    name: str
    class_name: str
    update: Update
    state: Callable[[Tensor, Values], State]
    hypers: Mapping[str, Hyper]
    scope: Scope
    paper: str
    summary: str
    when: str
    equations: str
    weight_decay_mode: DecayMode
    batch_scaling: BatchScaling
    linear: bool = False
    summed: str | None = None
    options: Mapping[str, Option] = field(default_factory=dict)
    packs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    check: Callable[[Values], str | None] = no_conflict
    sparse: Callable[[Values], bool] | None = None
    state_first: bool = False
    still_first: bool = False
    torch_group: Mapping[str, Any] = field(default_factory=dict)
    model: ModelHook | None = None
    points: Points | None = None
    observe: Callable[[Tensor, Tensor, State, Values, Scalar], State] | None = None
    partner: Partner | None = None
    blocks: Blocks | None = None
    slices: Slices | None = None
    core: Core | None = None

    @property
    def entrywise(self) -> bool:
        """Whether `update` takes any part of the entries."""
        return self.scope in ("element", "model")

    @property
    def arguments(self) -> dict[str, Any]:
        """Constructor arguments and their defaults: packed hyperparameters, then options."""
        hypers = {name: row.argument for name, row in self.hypers.items()}
        options = {name: row.default for name, row in self.options.items()}
        return self.pack({**hypers, **options})

    def pack(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Join flat values (``beta1``, ``beta2``) into constructor arguments (``betas``).

        Values that are packed already pass through. Raises TypeError when one argument comes both
        ways and fills what is missing from the defaults.
        """
        packed: dict[str, Any] = {}
        owner = {flat: name for name, flats in self.packs.items() for flat in flats}
        for key, value in values.items():
            name = owner.get(key)
            if name is None:
                packed[key] = value
            elif name in values:
                raise TypeError(f"{self.name}: {key} is part of {name}; give one of them")
            else:
                packed[name] = tuple(
                    values.get(flat, self.hypers[flat].argument) for flat in self.packs[name]
                )
        return packed

    def flatten(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Split constructor arguments, or a param group, into values per hyperparameter and option.

        Raises ValueError when a packed argument has another length than the rule's.
        """
        flat = {
            name: arguments[name] for name in (*self.hypers, *self.options) if name in arguments
        }
        for name, names in self.packs.items():
            value = arguments[name]
            if not hasattr(value, "__len__") or len(value) != len(names):
                raise ValueError(
                    f"{self.class_name}: {name}={value!r} is not valid; allowed: "
                    f"{len(names)} numbers"
                )
            flat |= zip(names, value, strict=True)
        absent = {name for name, row in self.hypers.items() if row.optional and flat[name] is None}
        return flat | dict.fromkeys(absent, nan)

    def validate(self, arguments: Mapping[str, Any]) -> None:
        """Raise ValueError or TypeError unless every constructor argument is valid."""
        flat = self.flatten(arguments)
        rows: dict[str, Hyper | Option] = {**self.hypers, **self.options}
        for name, row in rows.items():
            row.validate(self.class_name, name, flat[name])
        problem = self.check(Values(**flat))
        if problem:
            raise ValueError(f"{self.class_name}: {problem}")

    def values(self, **changes: Any) -> Values:
        """The defaults as an update sees them, with flat changes (tests, documentation)."""
        return Values(**(self.flatten(self.arguments) | changes))

    def memory(self, shape: tuple[int, ...] = (1024, 1024), **changes: Any) -> float:
        """Arrays of state per parameter entry, for a parameter of this shape."""
        state = self.state_layout(shape, torch.float32, self.values(**changes))
        entries = sum(tensor.numel() for tensor in state.values() if tensor.dim())
        return entries / prod(shape)

    def state_layout(self, shape: Sequence[int], dtype: torch.dtype, hyper: Values) -> State:
        """The state of a parameter of this shape and dtype as tensors without memory ("meta")."""
        with WithoutSympy():
            return self.state(torch.empty(shape, dtype=dtype, device="meta"), hyper)


@overload
def where(condition: Any, yes: Tensor, no: Scalar) -> Tensor: ...
@overload
def where(condition: Any, yes: Scalar, no: Tensor) -> Tensor: ...
@overload
def where(condition: Any, yes: Scalar, no: Scalar) -> Scalar: ...
def where(condition: Any, yes: Scalar, no: Scalar) -> Scalar:
    """``yes if condition else no`` for a condition that is a bool or a tensor."""
    if isinstance(condition, Tensor):
        return torch.where(condition, yes, no)
    return yes if condition else no


def choose(condition: Any, yes: Callable[[], State], no: Callable[[], State]) -> State:
    """``yes() if condition else no()``; a condition that is a tensor computes both."""
    if not isinstance(condition, Tensor):
        return yes() if condition else no()
    first, second = yes(), no()
    return {key: torch.where(condition, first[key], second[key]) for key in first}


def ema(old: Tensor, new: Tensor, beta: Scalar) -> Tensor:
    """Exponential moving average ``beta·old + (1 - beta)·new``."""
    if isinstance(beta, Tensor):  # lerp rejects a float64 weight on float32 tensors
        return beta * old + (1 - beta) * new
    return torch.lerp(old, new, 1 - beta)


def ema_square(old: Tensor, new: Tensor, beta: Scalar) -> Tensor:
    """Exponential moving average of the square, ``beta·old + (1 - beta)·new²``."""
    if isinstance(beta, Tensor):
        return beta * old + (1 - beta) * new * new
    return torch.addcmul(old * beta, new, new, value=1 - beta)


def add_scaled(base: Tensor, other: Tensor, scale: Scalar) -> Tensor:
    """``base + scale·other``; ``base`` itself if the scale is a number that is zero."""
    if isinstance(scale, Tensor):
        return base + scale * other
    return torch.add(base, other, alpha=scale) if scale else base


def at_least(values: Tensor, bound: Scalar) -> Tensor:
    """``max(values, bound)`` per entry."""
    if isinstance(bound, Tensor):  # clamp would widen float32 to a float64 bound under vmap
        return torch.maximum(values, bound)
    return values.clamp(min=bound)


def clip(values: Tensor, limit: Scalar) -> Tensor:
    """Values kept within ``-limit`` and ``limit``."""
    if isinstance(limit, Tensor):
        return torch.maximum(torch.minimum(values, limit), -limit)
    return values.clamp(-limit, limit)


def bias_correction(beta: Scalar, t: Scalar) -> Scalar:
    """``1 - beta^t``: what an average that started at zero has to be divided by after t updates."""
    correction: Scalar = 1 - beta**t
    return correction


def advance(
    rule: Rule, mode: DecayMode, grad: Tensor, param: Tensor, state: State, hyper: Values, t: Scalar
) -> tuple[Tensor, State]:
    """One step of one tensor with weight decay and learning rate; pure.

    ``hyper.schedule`` is the schedule's factor, already contained in ``hyper.lr``; only the decay
    that is independent of the learning rate reads it. Returns the new parameter and the new
    state.
    """
    if mode == "l2":
        grad = add_scaled(grad, param, hyper.weight_decay)
    seen = hyper
    if rule.weight_decay_mode == "inside" and mode != "inside":
        seen = Values(**{**vars(hyper), "weight_decay": 0.0})
    direction, state = rule.update(grad, param, state, seen, t)
    if mode in ("decoupled", "independent"):
        pace = hyper.lr if mode == "decoupled" else hyper.schedule
        decay = pace * hyper.weight_decay
        param = param * (1 - (where(t == 1, 0.0, decay) if rule.still_first else decay))
    return add_scaled(param, direction, -hyper.lr), state
