"""One step over all groups: norms and scales, state, and then every parameter by its engine."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from optimizers import checkpoint, clipping
from optimizers.batch import Batch, usable
from optimizers.clipping import Clip
from optimizers.core import DecayMode, State, Values
from optimizers.engines import eager
from optimizers.kernels import inductor
from optimizers.kernels.plan import Plan
from optimizers.kernels.table import Table
from optimizers.sharding import are_plain, local_scale, placed_like, plain


def batch_of(clip: Clip, group: Mapping[str, Any], hyper: Values, plan: Plan) -> Batch:
    """What a group's step needs. The batch of a plan that has only tables is made once."""
    wish, bound, maximize = plan.wish, clip.value, group["maximize"]
    mode: DecayMode = "none" if hyper.weight_decay == 0 else wish.mode
    if plan.batch is not None:
        batch = plan.batch
        batch.mode, batch.hyper, batch.bound, batch.maximize = mode, hyper, bound, maximize
        return batch
    grads = [param.grad for param in plan.rest if param.grad is not None]
    if not are_plain(grads):
        grads = [
            usable(placed_like(grad, param), wish.rule, mode, hyper, wish.units)
            for grad, param in zip(grads, plan.rest, strict=True)
        ]
    batch = Batch(
        rule=wish.rule,
        mode=mode,
        hyper=hyper,
        params=list(plan.rest),
        grads=grads,
        bound=bound,
        maximize=maximize,
        stochastic=wish.low_precision == "stochastic",
        zeros=wish.zeros,
        tables=plan.tables,
    )
    plan.batch = None if plan.rest else batch
    return batch


class Norms(NamedTuple):
    """L2 norms of gradients: of the batches' own one by one, and over everything."""

    own: list[float]
    total: float

    @classmethod
    def of(cls, batches: Sequence[Batch], at_least: torch.dtype = torch.float32) -> Norms:
        """Read every gradient once; those in tables also leave their norms there."""
        grads = [grad for batch in batches for grad in batch.grads]
        own = clipping.float_norms(grads, at_least) if grads else []  # tables have none
        tables = [math.sqrt(table.square_sum()) for batch in batches for table in batch.tables]
        return cls(own, math.hypot(*own, *tables))


def set_scales(clip: Clip, batches: Sequence[Batch], norms: Norms) -> None:
    """Tell every gradient what multiplies it."""
    for batch in batches:
        for table in batch.tables:
            scale_table(clip, table, norms.total)
    if norms.own:
        grads = [grad for batch in batches for grad in batch.grads]
        params = [param for batch in batches for param in batch.params]
        scales = iter(clip.scales(grads, params, norms.own, norms.total))
        for batch in batches:
            batch.scales.extend(map(local_scale, islice(scales, len(batch.grads))))


def scale_table(clip: Clip, table: Table, total: float) -> None:
    """As `set_scales`, for one table."""
    table.scale, table.scales, table.units = 1.0, None, None
    if clip.kind == "clip_norm":
        table.scale = float(clipping.norm_scale(total, clip.limit))
    elif clip.kind in clipping.SCALINGS:
        grads = [param.grad for param in table.params if param.grad is not None]
        scales = clip.scales(grads, table.params, [*map(math.sqrt, table.squares)], total)
        if isinstance(scales[0], Tensor):
            table.units = [scale for scale in scales if isinstance(scale, Tensor)]
        else:
            table.scales = array("d", map(float, scales))


def prepare_rows(batch: Batch, states: Mapping[Tensor, State], allocate: Allocate) -> None:
    """Allocate missing state, count the update, and hand the rule's tensors to the batch."""
    if not batch.params:
        return
    own = [*map(states.__getitem__, batch.params)]
    for param, state in zip(batch.params, own, strict=True):
        allocate(param, state)
    if not (are_plain(batch.params) and are_plain(batch.grads)):
        own = [*map(checkpoint.plain_state, own)]
        batch.params[:] = map(plain, batch.params)
        batch.grads[:] = map(plain, batch.grads)
    batch.states.extend(map(checkpoint.rule_state, own))
    batch.compensations.extend(state.get(checkpoint.COMPENSATION) for state in own)
    counters = [state["step"] for state in own]
    one = torch.ones((), device=counters[0].device)  # a number becomes a tensor for every counter
    torch._foreach_add_(counters, one, alpha=1.0)
    batch.steps.extend(map(Tensor.item, counters))


Allocate = Callable[[Tensor, State], None]


def prepare_tables(batch: Batch, states: Mapping[Tensor, State], allocate: Allocate) -> None:
    """Allocate missing state, and point the tables to it."""
    for table in batch.tables:
        if table.states is None:
            own = [states[param] for param in table.params]
            for param, state in zip(table.params, own, strict=True):
                allocate(param, state)
            table.bind(own)


def run(batch: Batch, *, compiled: bool) -> None:
    """Step the parameters of one group; ``compiled`` asks for kernels on GPUs, too."""
    if batch.params:
        devices = {param.device.type for param in batch.params} if compiled else set()
        if devices & inductor.DEVICES:
            eager(batch, partial(inductor.step_piece, batch, numbers=inductor.numbers_of(batch)))
        else:
            eager(batch)
    for table in batch.tables:
        table.run(batch.hyper, batch.bound, batch.maximize)
