"""Which engine a run gets: what ``engine=`` means.

- ``"eager"``: ordinary torch operations.
- ``"compiled"``: a kernel of the rule, compiled if it is not in the cache yet; eager for what has
  none (products of matrices, sparse or sharded parameters) and, with a warning, without a compiler.
- ``"fused"``: as compiled, but nothing is compiled: only kernels that are in the cache.
- ``"auto"``: as fused, and compiles when the run is sure to win more than that takes.

The choice is made in the first step of an optimizer and stays, as the engines agree only up to
rounding; ``"auto"`` writes it into the param groups, so that a resumed run goes on as it began.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from optimizers.kernels.build import compiler
from optimizers.kernels.reflect import Reflections
from optimizers.kernels.table import Signature

ENGINES = ("auto", "eager", "fused", "compiled")
CHOICE = "engine"  # the key in a param group

# Seconds, measured with AdamW on two cores: what a kernel saves per step, and what it costs once.
PER_ENTRY, PER_TENSOR, COMPILATION = 1e-9, 2e-5, 2.0
PER_CUBE = 1e-12  # measured with SOAP: of a basis that is refreshed every ten steps
ASSUMED_STEPS = 100  # of a run whose length is not known


def check_engine(owner: str, name: object) -> None:
    """Raise ValueError naming the engines there are."""
    if name not in ENGINES:
        raise ValueError(f"{owner}: engine={name!r} is not valid; allowed: {', '.join(ENGINES)}")


def saving(params: Sequence[Tensor], bases: Sequence[int] = ()) -> float:
    """Seconds that kernels for parameters, and for bases of these sizes, save per step."""
    entries = sum(param.numel() for param in params)
    cubes = sum(size**3 for size in bases)
    return PER_ENTRY * entries + PER_TENSOR * len(params) + PER_CUBE * cubes


def pays(count: int, saved: float, steps: int | None) -> bool:
    """Whether so many kernels save more than they cost, in a run of so many steps (None: unknown).

    ``saved`` is per step, in seconds.
    """
    return saved * (ASSUMED_STEPS if steps is None else steps) > COMPILATION * count


def use_kernels(
    engine: str, needs: Sequence[Signature | Reflections], saved: float, steps: int | None
) -> bool:
    """Whether an engine runs what has these needs by kernels, compiling them if need be."""
    if engine == "compiled":
        return True
    if engine == "eager" or not needs:
        return False
    if all(kernel.ready for need in needs for kernel in need.kernels):
        return True
    return engine == "auto" and compiler() is not None and pays(len(needs), saved, steps)


def chosen(group: dict[str, Any]) -> str | None:
    """What auto chose for a group when its run began, or None."""
    choice = group.get(CHOICE)
    return choice if choice in ("eager", "compiled") else None
