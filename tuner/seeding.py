"""Random numbers of a run: seeded together, and saved and restored together."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

_fill: Any = torch.utils.deterministic


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng_state() -> dict[str, Any]:
    """States of all generators, made of what `torch.load(weights_only=True)` accepts."""
    numpy_state: Any = np.random.get_state(legacy=False)
    key = torch.from_numpy(numpy_state["state"]["key"].astype(np.int64))
    return {
        "python": random.getstate(),
        "numpy": {**numpy_state, "state": {**numpy_state["state"], "key": key}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_rng(state: dict[str, Any]) -> None:
    """Put all generators back to what `rng_state` returned."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    key = state["numpy"]["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state({**state["numpy"], "state": {**state["numpy"]["state"], "key": key}})
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


@contextlib.contextmanager
def preserved_rng() -> Iterator[None]:
    """Random numbers drawn inside do not move the generators outside."""
    state = rng_state()
    try:
        yield
    finally:
        restore_rng(state)


@contextlib.contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """Let PyTorch choose deterministic kernels, and put its settings back afterwards.

    New memory is not filled: that would hide no difference and costs time.
    """
    # torch.use_deterministic_algorithms would import TorchInductor: over a second, and 100 MB.
    before = torch.get_deterministic_debug_mode(), _fill.fill_uninitialized_memory
    if enabled:
        torch.set_deterministic_debug_mode("warn")
        _fill.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before[0])
        _fill.fill_uninitialized_memory = before[1]
