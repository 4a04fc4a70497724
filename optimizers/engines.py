"""How a rule runs over the parameters of one group.

An engine reads gradients, never writes them, and writes parameters and state in place. ``eager``
works in pieces that fit the cache, because the temporaries of a pure rule over a big tensor cost
more than the rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from optimizers.around import Single, Step, around_core, computed, in_blocks, in_slices
from optimizers.batch import Batch, seen, step_part, store, store_part
from optimizers.clipping import readable
from optimizers.core import Rule, Scalar, State
from optimizers.eager.repeated import Computed, Repeated
from optimizers.pieces import Piece, chunks
from optimizers.precision import compute_dtype, noise_source
from optimizers.stacks import KIND, gather, over_stack, scatter, scatter_state, stacks


def step_dense(batch: Batch, piece: Piece, noise: torch.Generator | None) -> None:
    """Step one parameter, piece by piece where the rule allows it."""
    shared: State = {}
    for part in chunks(piece) if batch.rule.entrywise else [piece]:
        shared |= store_part(piece, part, step_part(batch, batch.rule, part, noise))
    store(piece.state, shared)


def are_apart(rule: Rule, state: State) -> bool:
    """Whether the entries of a parameter do not see each other."""
    return rule.entrywise or (rule.slices is not None and not rule.slices.bases(state))


def step_stack(batch: Batch, indices: Sequence[int], step_in_place: Step) -> None:
    """Step small parameters of one shape together: as one, where entries do not see each other."""
    stack = gather(batch, indices)
    own = batch.states[indices[0]]
    if are_apart(batch.rule, own) and all(value.dim() for value in own.values()):
        step_in_place([stack], None)
    else:
        state = step_part(batch, over_stack(batch.rule), stack)
        stack = stack._replace(state=state)
    scatter(batch, stack, indices)


def step_rows(batch: Batch, piece: Piece, noise: torch.Generator | None) -> None:
    """Step the rows that a sparse gradient names, with memory for them alone."""
    index = tuple(piece.grad.indices())
    whole = {key: value for key, value in piece.state.items() if value.shape == piece.param.shape}
    if piece.compensation is not None:
        whole["compensation"] = piece.compensation
    rows = {key: value[index] for key, value in whole.items()}
    part = Piece(
        piece.param[index], piece.grad.values(), {**piece.state, **rows},
        rows.get("compensation"), piece.t, piece.scale,
    )  # fmt: skip
    part.state.pop("compensation", None)
    step_dense(batch, part, noise)
    piece.param[index] = part.param
    for key, value in rows.items():
        whole[key][index] = value


def in_place(batch: Batch) -> Step:
    """How parameters of a batch are stepped where they lie."""
    if batch.rule.core is not None:
        return around_core(batch, batch.rule.core)
    single = one_by_one(batch)

    def step(pieces: Sequence[Piece], noise: torch.Generator | None) -> None:
        for piece in pieces:
            single(piece, noise)

    return step


def one_by_one(batch: Batch) -> Single:
    """How one parameter is stepped by a rule without a `Core`."""
    if batch.rule.slices is not None:
        return in_slices(batch, batch.rule.slices)
    if batch.rule.blocks is not None:
        return in_blocks(batch, batch.rule.blocks)
    if batch.rule.scope == "tensor":
        return partial(step_dense, batch)
    repeated = Repeated(batch, computed)

    def step(piece: Piece, noise: torch.Generator | None) -> None:
        new = None if noise is not None else repeated.step(piece)
        if new is None:
            step_dense(batch, piece, noise)
        else:
            store(piece.state, new.state)

    return step


def by_shape(batch: Batch, indices: Sequence[int]) -> list[list[Piece]]:
    """Parameters of one shape each, the largest first: memory for them will do for all others."""
    alike: dict[object, list[Piece]] = {}
    for piece in map(batch.piece, indices):
        alike.setdefault(KIND(piece.param), []).append(piece)
    return sorted(alike.values(), key=lambda own: own[0].param.numel(), reverse=True)


def eager(batch: Batch, compiled: Callable[[Piece], bool] | None = None) -> None:
    """Run the rule with ordinary torch operations, on each parameter or on stacks of them.

    ``compiled`` may step a piece itself; it says whether it did.
    """
    ordinary = []
    step_in_place = in_place(batch)
    for index, (param, grad) in enumerate(zip(batch.params, batch.grads, strict=True)):
        if not param.numel():  # norms and factors of nothing are not defined
            continue
        if compiled is not None and compiled(batch.piece(index)):
            continue
        half = batch.stochastic and param.dtype != compute_dtype(param.dtype)
        noise = noise_source(param.device, batch.steps[index], index) if half else None
        if grad.is_sparse:
            step_rows(batch, batch.piece(index), noise)
        elif noise is not None:
            step_in_place([batch.piece(index)], noise)
        else:
            ordinary.append(index)
    singles, together = stacks(batch, ordinary)
    for pieces in by_shape(batch, singles):
        step_in_place(pieces, None)
    for indices in together:
        step_stack(batch, indices, step_in_place)


def contribution(batch: Batch, part: Piece) -> Computed:
    """What a part contributes to the sums over all parameters."""
    hook = batch.rule.model
    assert hook is not None
    grad, param = seen(batch, part)
    sums, state = hook.partial(grad, param, part.state, batch.hyper, part.t)
    return Computed(None, state, sums)


def partial_sums(batch: Batch) -> Iterator[dict[str, Tensor]]:
    """What each parameter contributes to the sums over all of them."""
    repeated = Repeated(batch, contribution)
    ordinary, together = stacks(batch, range(len(batch.params)))
    for indices in together:
        if not all(value.dim() for value in batch.states[indices[0]].values()):
            ordinary += indices
            continue
        stack = gather(batch, indices)
        own = contribution(batch, stack)  # whose sums are over all of them
        new = {key: value for key, value in own.state.items() if value is not stack.state[key]}
        scatter_state(batch, new, indices)
        yield {key: readable(value) for key, value in own.sums.items()}
    for piece in map(batch.piece, ordinary):
        found = repeated.step(piece)
        if found is not None:
            store(piece.state, found.state)
            yield {key: readable(value) for key, value in found.sums.items()}
            continue
        shared: State = {}
        for part in chunks(piece):
            own = contribution(batch, part)
            shared |= store_part(piece, part, own.state)
            yield {key: readable(value) for key, value in own.sums.items()}
        store(piece.state, shared)


def share(batches: Sequence[Batch], shared: Mapping[str, float]) -> dict[str, float]:
    """Run a `ModelHook` over all parameters; returns the new shared scalars.

    ``batches`` are those of one rule and not empty; ``shared`` is what the last step returned, or
    empty.
    """
    first = batches[0]
    hook = first.rule.model
    if hook is None:
        return {}
    before: dict[str, Scalar] = dict(shared or hook.initial(first.hyper))
    totals: dict[str, Tensor] = {}
    for batch in batches:
        vars(batch.hyper).update(before)
        for sums in partial_sums(batch):
            for key, value in sums.items():
                totals[key] = totals[key] + value.to(totals[key].device) if key in totals else value
        for table in batch.tables:
            for key, part in table.totals(batch.hyper, batch.bound, batch.maximize).items():
                totals[key] = totals.get(key, 0.0) + torch.tensor(part, dtype=torch.float64)
    steps = [step for batch in batches for step in batch.steps]
    newest = max([*steps, *(1 + table.newest() for batch in batches for table in batch.tables)])
    after = {k: float(v) for k, v in hook.combine(totals, before, first.hyper, newest).items()}
    for batch in batches:
        vars(batch.hyper).update(after)
    return after
