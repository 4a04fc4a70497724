"""How a rule runs over the parameters of one group.

An engine reads gradients, never writes them, and writes parameters and state in place. ``eager``
works in pieces that fit the cache, because the temporaries of a pure rule over a big tensor cost
more than the rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

from optimizers.core import DecayMode, Rule, Scalar, State, Values, add_scaled, advance

CHUNK = 2**17  # elements; smaller pieces pay per-call overhead, larger ones fall out of the cache
HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Batch:
    """The parameters of one group that have a gradient, and all that their step needs.

    ``scales`` multiply the gradients (clipping), ``bound`` limits each entry; ``steps`` are the
    updates each state will have absorbed after this one. Parameters and gradients are real.
    """

    rule: Rule
    mode: DecayMode
    hyper: Values
    params: list[Tensor]
    grads: list[Tensor]
    states: list[State] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    scales: list[Scalar] = field(default_factory=list)
    bound: float | None = None
    maximize: bool = False


Engine = Callable[[Batch], None]


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision of the arithmetic and of the state: float32 for half precision parameters."""
    return torch.float32 if dtype in HALF else dtype


def as_real(tensor: Tensor) -> Tensor:
    """Complex entries as pairs of reals, by a view; real tensors as they are."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def as_dense(rule: Rule, grad: Tensor) -> Tensor:
    """A sparse gradient made dense; raises TypeError for rules without a sparse form."""
    if not grad.is_sparse:
        return grad
    if not rule.sparse:
        raise TypeError(f"{rule.class_name} does not support sparse gradients")
    return grad.to_dense()


def prepare(grad: Tensor, batch: Batch, scale: Scalar, dtype: torch.dtype) -> Tensor:
    """The gradient that the rule sees: widened, clipped, and turned for maximisation."""
    grad = grad.to(dtype)
    if batch.bound is not None:
        grad = grad.clamp(-batch.bound, batch.bound)
    if isinstance(scale, Tensor) or scale != 1.0:
        grad = grad * scale
    return -grad if batch.maximize else grad


def flat(tensors: list[Tensor]) -> list[Tensor] | None:
    """1-D views that pair up entries, or None when the layouts differ or have holes."""
    first = tensors[0]
    alike = all(t.stride() == first.stride() and t.shape == first.shape for t in tensors)
    dense = sum((n - 1) * s for n, s in zip(first.shape, first.stride(), strict=True)) + 1
    if not alike or dense != first.numel():
        return None
    return [tensor.as_strided((tensor.numel(),), (1,)) for tensor in tensors]


def chunks(
    rule: Rule, param: Tensor, grad: Tensor, state: State, scale: Scalar
) -> Iterator[tuple[Tensor, Tensor, State]]:
    """Views of one parameter, its gradient and state, in pieces where the rule allows it."""
    arrays = {key: value for key, value in state.items() if value.shape == param.shape}
    views = None
    if rule.scope == "element" and param.numel() > CHUNK and not isinstance(scale, Tensor):
        views = flat([param, grad, *arrays.values()])
    if views is None:
        yield param, grad, state
        return
    for parts in zip(*(torch.split(view, CHUNK) for view in views), strict=True):
        yield parts[0], parts[1], {**state, **dict(zip(arrays, parts[2:], strict=True))}


def eager(batch: Batch) -> None:
    """Run the rule tensor by tensor with ordinary torch operations."""
    rule = batch.rule
    rows = zip(
        batch.params, batch.grads, batch.states, batch.steps, batch.scales, strict=True
    )  # fmt: skip
    for param, grad, state, t, scale in rows:
        dtype = compute_dtype(param.dtype)
        scalars: State = {}
        for piece, piece_grad, piece_state in chunks(rule, param, grad, state, scale):
            g = prepare(piece_grad, batch, scale, dtype)
            new, new_state = advance(
                rule, batch.mode, g, piece.to(dtype), piece_state, batch.hyper, t
            )
            piece.copy_(new)
            for key, value in new_state.items():
                if value.shape == piece.shape:
                    piece_state[key].copy_(value)
                else:
                    scalars[key] = value
        for key, value in scalars.items():
            state[key].copy_(value)


def store(state: State, new: State) -> None:
    """Write a rule's new state into the tensors that hold it."""
    for key, value in new.items():
        state[key].copy_(value)


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
        rows = zip(batch.params, batch.grads, batch.states, batch.steps, batch.scales, strict=True)
        for param, grad, state, t, scale in rows:
            dtype = compute_dtype(param.dtype)
            g, p = prepare(grad, batch, scale, dtype), param.to(dtype)
            if batch.mode == "l2":
                g = add_scaled(g, p, batch.hyper.weight_decay)
            sums, new_state = hook.partial(g, p, state, batch.hyper, t)
            store(state, new_state)
            for key, value in sums.items():
                totals[key] = totals[key] + value.to(totals[key].device) if key in totals else value
    newest = max(step for batch in batches for step in batch.steps)
    after = {k: float(v) for k, v in hook.combine(totals, before, first.hyper, newest).items()}
    for batch in batches:
        vars(batch.hyper).update(after)
    return after


ENGINES: Mapping[str, Engine] = MappingProxyType({"auto": eager, "eager": eager})


def get_engine(name: str) -> Engine:
    """An engine by name; raises ValueError naming the engines there are."""
    try:
        return ENGINES[name]
    except KeyError:
        raise ValueError(f"engine {name!r} is not known; allowed: {', '.join(ENGINES)}") from None
