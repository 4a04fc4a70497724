"""Rules on a GPU: one Triton kernel per rule and dtype, by torch.compile.

The same pure rule as everywhere, over a 1-D view of any length with 0-D tensors as numbers, so
that neither a model's shapes nor a learning rate compile anything again. Widening, clipping,
weight decay and compensation are in the kernel. Other layouts, sparse gradients, stochastic
rounding and single entries (which torch.compile would take for a constant) are left to the eager
engine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from optimizers.batch import Batch
from optimizers.core import DecayMode, Rule, State, Values, advance
from optimizers.kernels.build import tell_once
from optimizers.pieces import Piece, flat
from optimizers.precision import narrow, widen

DEVICES = {"cuda", "xpu"}
BACKEND = "inductor"

Numbers = dict[str, Tensor]
Step = Callable[[Tensor, Tensor, Tensor | None, State, Numbers], None]

_known: dict[object, Step | None] = {}


class Named:
    """What a rule sees as ``hyper``; torch.compile does not follow a SimpleNamespace."""

    def __init__(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            setattr(self, name, value)


def make_step(rule: Rule, mode: DecayMode, options: dict[str, Any]) -> Step:
    """The whole step of one parameter, in place, for torch.compile."""

    def step(
        param: Tensor, grad: Tensor, compensation: Tensor | None, state: State, numbers: Numbers
    ) -> None:
        wide = widen(param, compensation)
        bound, factor, t = (numbers[name] for name in ("_bound", "_factor", "_t"))
        seen = grad.to(wide.dtype)
        hyper = cast(Values, Named({**options, **numbers}))
        seen = torch.maximum(torch.minimum(seen, bound), -bound) * factor
        new, after = advance(rule, mode, seen, wide, state, hyper, t)
        narrow(param, new, compensation)
        for key, value in after.items():
            state[key].copy_(value)

    # torch.compile counts what it compiled per code object, and stops at eight
    step.__code__ = step.__code__.replace(co_name=f"step_{rule.name}")
    return step


def numbers_of(batch: Batch) -> Numbers:
    """The numbers that are the same for a whole batch, as 0-D tensors."""
    values = {k: v for k, v in vars(batch.hyper).items() if k not in batch.rule.options}
    values["_bound"] = float("inf") if batch.bound is None else batch.bound
    return {key: torch.tensor(float(v), dtype=torch.float64) for key, v in values.items()}


def alias(view: Tensor) -> Tensor:
    """The same memory without a base: torch.compile guards what a view is a view of."""
    plain = torch.empty(0, dtype=view.dtype, device=view.device)
    return plain.set_(view.untyped_storage(), view.storage_offset(), view.shape, view.stride())


def step_piece(batch: Batch, piece: Piece, numbers: Numbers) -> bool:
    """Step one parameter by its kernel; False when it has none, and nothing has changed."""
    param, rule = piece.param, batch.rule
    fits = (
        param.device.type in DEVICES
        and rule.scope == "element"
        and piece.grad.layout == torch.strided
        and param.numel() > 1
        and not batch.stochastic
        and not isinstance(piece.scale, Tensor)
    )
    arrays = {key: value for key, value in piece.state.items() if value.shape == param.shape}
    extra = [] if piece.compensation is None else [piece.compensation]
    views = flat([param, piece.grad, *extra, *arrays.values()]) if fits else None
    if views is None:
        return False
    views = [alias(view) for view in views]
    # no decay is any decay with a weight of zero: groups with and without it share a kernel
    mode = rule.weight_decay_mode if batch.mode == "none" else batch.mode
    options = {name: getattr(batch.hyper, name) for name in rule.options}
    key = (rule.name, rule.update, *options.items(), mode, param.device.type, param.dtype)
    if key not in _known:
        step = make_step(rule, mode, options)
        _known[key] = torch.compile(step, dynamic=True, fullgraph=True, backend=BACKEND)
    step_or_none = _known[key]
    if step_or_none is None:
        return False
    factor = -piece.scale if batch.maximize else piece.scale
    one = {
        "_t": torch.tensor(piece.t, dtype=torch.float64),
        "_factor": torch.tensor(factor, dtype=torch.float64),
    }
    state = {**piece.state, **dict(zip(arrays, views[2 + len(extra) :], strict=True))}
    try:
        step_or_none(views[0], views[1], views[2] if extra else None, state, {**numbers, **one})
    except Exception as error:  # no Triton, no driver, a compiler of another version...
        if not from_compiler(error):
            raise
        _known[key] = None
        reason = " ".join(str(error).split()[:30])  # it goes on for pages
        tell_once(f"optimizers run without compiled kernels: {reason}")
        return False
    return True


def from_compiler(error: Exception) -> bool:
    """Whether an error comes from compiling, before anything ran."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "triton"))
