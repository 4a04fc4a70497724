"""Random generators: seeded, saved and put back together."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tuner.seeding import deterministic, preserved_rng, restore_rng, rng_state, seed_everything


def draw() -> tuple[object, ...]:
    normal = np.random.standard_normal()  # leaves a second number in the generator
    return random.random(), random.gauss(0, 1), normal, np.random.rand(), torch.rand(3).tolist()


def test_a_seed_decides_all_numbers() -> None:
    seed_everything(5)
    first = draw()
    seed_everything(5)
    assert draw() == first
    seed_everything(6)
    assert draw() != first


@pytest.mark.parametrize("seed", [0, 2**32 + 1, 2**62])
def test_large_seeds_are_accepted(seed: int) -> None:
    seed_everything(seed)


def test_the_state_survives_a_safe_file(tmp_path: Path) -> None:
    seed_everything(5)
    draw()
    torch.save(rng_state(), tmp_path / "rng.pt")
    expected = draw()
    draw()
    restore_rng(torch.load(tmp_path / "rng.pt", weights_only=True))
    assert draw() == expected


def raise_interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("action", [draw, raise_interrupt])
def test_numbers_drawn_inside_do_not_count(action: Callable[[], object]) -> None:
    seed_everything(5)
    expected = draw()
    seed_everything(5)
    try:
        with preserved_rng():
            action()
    except KeyboardInterrupt:
        pass
    assert draw() == expected


def test_deterministic_settings_end_with_the_block() -> None:
    with deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    with deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled()
