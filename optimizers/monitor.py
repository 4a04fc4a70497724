"""Seeing inside a run: per layer, the gradient's norm, the size of the update, and what is wrong.

    monitor = Monitor(model, every=100)
    monitor.attach(optimizer)              # any torch.optim.Optimizer, ours or not
    ...
    monitor.last.exploding                 # names of layers, after a step that was looked at

A layer is a module that holds parameters of its own. Between two reports a step costs one
comparison; the step of a report copies the parameters for as long as it lasts and moves three
numbers a layer off the device at once. Nothing of the training is touched. Under FSDP2 the numbers
are those of the whole layers, on every process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import hypot, inf, isfinite
from statistics import median
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from optimizers.clipping import float_norms
from optimizers.groups import owners

Verdict: TypeAlias = Literal["ok", "dead", "vanishing", "exploding"]
Layers: TypeAlias = dict[str, list[Tensor]]

# A gradient this much smaller than the largest layer's trains nothing.
VANISHING = 1e-4
# A gradient this many times the layer's own median so far is an explosion.
EXPLODING = 100.0
# An update larger than the weights it changes.
LARGEST_RATIO = 1.0
# Reports before a layer's median says anything.
ENOUGH = 3


@dataclass(frozen=True)
class LayerStats:
    """L2 norms of one layer in one step: its gradient, its weights before the step, the change."""

    grad_norm: float
    weight_norm: float
    update_norm: float

    @property
    def update_ratio(self) -> float | None:
        """Update over weight; about 1e-3 is usual. None while all weights are zero."""
        return self.update_norm / self.weight_norm if self.weight_norm else None


@dataclass(frozen=True)
class Report:
    """One look at a step (counted from 1): the numbers and the verdict of every layer."""

    step: int
    layers: Mapping[str, LayerStats]
    verdicts: Mapping[str, Verdict]

    def named(self, verdict: Verdict) -> list[str]:
        """Names of the layers with a verdict, in the order of the model."""
        return [name for name, found in self.verdicts.items() if found == verdict]

    @property
    def dead(self) -> list[str]:
        """Layers without a gradient, or with one that is exactly zero."""
        return self.named("dead")

    @property
    def vanishing(self) -> list[str]:
        """Layers whose gradient is lost beside that of the largest layer."""
        return self.named("vanishing")

    @property
    def exploding(self) -> list[str]:
        """Layers with a non-finite gradient, a sudden growth of it, or an update above weight."""
        return self.named("exploding")


def layers_of(model: nn.Module) -> Layers:
    """The trainable parameters of each layer by the module's name; a shared one counts once.

    A parameter of the model itself is a layer of its own.
    """
    layers: Layers = {}
    seen: set[int] = set()
    for name, _, param in owners(model):
        if id(param) not in seen:
            seen.add(id(param))
            layers.setdefault(name.rpartition(".")[0] or name, []).append(param)
    return layers


def measure(layers: Layers, before: Mapping[str, Sequence[Tensor]]) -> dict[str, LayerStats]:
    """The numbers of a step, from the parameters after it and copies of them before it."""
    tensors: list[Tensor] = []
    pieces: list[tuple[str, list[int]]] = []
    for name, params in layers.items():
        grads = [param.grad for param in params if param.grad is not None]
        changes = [new.detach() - past for new, past in zip(params, before[name], strict=True)]
        pieces.append((name, [len(grads), len(params), len(params)]))
        tensors += [*grads, *before[name], *changes]
    values = iter(float_norms(tensors))
    return {
        name: LayerStats(*(hypot(*islice(values, count)) for count in counts))
        for name, counts in pieces
    }


def judge(
    layers: Mapping[str, LayerStats], past: Mapping[str, Sequence[float]]
) -> dict[str, Verdict]:
    """What is wrong with each layer, given the gradient norms of earlier reports by layer."""
    largest = max((s.grad_norm for s in layers.values() if isfinite(s.grad_norm)), default=0.0)

    def verdict(name: str, stats: LayerStats) -> Verdict:
        seen = [value for value in past.get(name, ()) if isfinite(value)]
        usual = median(seen) if len(seen) >= ENOUGH else inf
        if not isfinite(stats.grad_norm) or not isfinite(stats.update_norm):
            return "exploding"
        if stats.grad_norm == 0:
            return "dead"
        sudden = usual > 0 and stats.grad_norm > EXPLODING * usual
        if sudden or (stats.update_ratio or 0.0) > LARGEST_RATIO:
            return "exploding"
        return "vanishing" if stats.grad_norm < VANISHING * largest else "ok"

    return {name: verdict(name, stats) for name, stats in layers.items()}


class Monitor:
    """Looks at the first step and at every ``every``-th after it; keeps ``history`` reports.

    ``attach(optimizer)`` does it by hooks; a loop of one's own calls ``before_step()`` and
    ``after_step()`` around ``optimizer.step()``. Gradients are read after the step, so that a
    closure's count, too: before clipping with our optimizers, after it where the loop clips.
    Raises ValueError unless ``every`` and ``history`` are positive.
    """

    def __init__(self, model: nn.Module, every: int = 100, history: int = 100) -> None:
        for name, value in (("every", every), ("history", history)):
            if value < 1:
                raise ValueError(f"Monitor: {name}={value!r} is not valid; allowed: value >= 1")
        self.model = model
        self.every = every
        self.step = 0
        self.reports: deque[Report] = deque(maxlen=history)
        self._before: dict[str, list[Tensor]] | None = None
        self._layers: Layers = {}
        self._handles: list[Any] = []

    @property
    def last(self) -> Report | None:
        """The newest report."""
        return self.reports[-1] if self.reports else None

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Look at the steps of an optimizer from now on."""
        self._handles += [
            optimizer.register_step_pre_hook(lambda *_: self.before_step()),
            optimizer.register_step_post_hook(lambda *_: self.after_step()),
        ]

    def detach(self) -> None:
        """Look no more; the reports stay."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def before_step(self) -> None:
        """Remember the weights if the coming step is looked at."""
        if self.step % self.every == 0:
            self._layers = layers_of(self.model)
            self._before = {
                name: [param.detach().clone() for param in params]
                for name, params in self._layers.items()
            }

    def after_step(self) -> None:
        """Count the step, and report if it is looked at."""
        self.step += 1
        if self._before is None:
            return
        layers = measure(self._layers, self._before)
        past = {name: self._grad_norms(name) for name in layers}
        self.reports.append(Report(self.step, layers, judge(layers, past)))
        self._before, self._layers = None, {}

    def _grad_norms(self, name: str) -> list[float]:
        return [r.layers[name].grad_norm for r in self.reports if name in r.layers]
