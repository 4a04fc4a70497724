"""One step over all groups: norms and scales, state, and then every parameter by its engine."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial, reduce
from itertools import chain, islice
from operator import add, attrgetter
from typing import Any

import torch
from torch import Tensor

from optimizers import checkpoint, clipping
from optimizers.batch import Batch, usable
from optimizers.clipping import Clip
from optimizers.core import DecayMode, State, Values
from optimizers.engines import eager, share
from optimizers.kernels import inductor
from optimizers.kernels.plan import Plan
from optimizers.kernels.table import Table
from optimizers.sharding import are_plain, local_scale, placed_like, plain

GRADS, TABLES = attrgetter("grads"), attrgetter("tables")


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
        reflect=plan.reflect,
    )
    plan.batch = None if plan.rest else batch
    return batch


def table_norm(tables: Iterable[Table]) -> float:
    """The L2 norm over all gradients in tables, which keep the squares of each.

    Summed up as in ``runtime.h``, so that a step comes out the same whoever does it.
    """
    return math.sqrt(reduce(add, map(Table.square_sum, tables), 0.0))


def norms_of(
    batches: Sequence[Batch], at_least: torch.dtype = torch.float32
) -> tuple[list[float], float]:
    """L2 norms of gradients: of the batches' own one by one, and over everything.

    Every gradient is read once; those in tables also leave their norms there.
    """
    grads = [*chain.from_iterable(map(GRADS, batches))]
    own = clipping.float_norms(grads, at_least) if grads else []  # tables have none
    return own, math.hypot(*own, table_norm(chain.from_iterable(map(TABLES, batches))))


def set_scales(clip: Clip, batches: Sequence[Batch], own: Sequence[float], total: float) -> None:
    """Tell every gradient what multiplies it, which follows from `norms_of` them."""
    scale, apart = clip.scale(total), clip.kind in clipping.APART
    for table in chain.from_iterable(map(TABLES, batches)):
        table.scale, table.scales, table.units = scale, None, None
        if apart:
            scale_rows(clip, table, total)
    if own:
        grads = [grad for batch in batches for grad in batch.grads]
        params = [param for batch in batches for param in batch.params]
        scales = iter(clip.scales(grads, params, own, total))
        for batch in batches:
            batch.scales.extend(map(local_scale, islice(scales, len(batch.grads))))


def scale_rows(clip: Clip, table: Table, total: float) -> None:
    """As `set_scales`, for the rows of one table."""
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


def share_sums(groups: Sequence[dict[str, Any]], batches: Sequence[Batch]) -> None:
    """Let a rule of scope "model" see sums over all its parameters."""
    for rule in {batch.rule.name: batch.rule for batch in batches if batch.rule.model}.values():
        own = [pair for pair in zip(groups, batches, strict=True) if pair[1].rule is rule]
        active = [batch for _, batch in own if batch.params or batch.tables]
        if active:
            shared = share(active, own[0][0].get("shared", {}))
            for group, _ in own:
                group["shared"] = shared


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
