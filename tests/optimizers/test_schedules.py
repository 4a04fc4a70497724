"""Schedules: bounds, ends, continuity, names, and torch's scheduler interface."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizers import schedules
from tests.optimizers.table import SCHEDULES

JUMPS = {"step"}
kinds = st.sampled_from(list(schedules.SCHEDULES.values()))


@st.composite
def any_schedule(draw):
    kind = draw(kinds)
    numbers = {name: draw(st.floats(row.low, row.high)) for name, row in kind.numbers().items()}
    return kind(**numbers)


@given(any_schedule(), st.integers(1, 3000))
@settings(max_examples=200, deadline=None)
def test_factors_stay_in_bounds_and_where_they_ended(schedule, total_steps):
    factors = [schedule.factor(step, total_steps) for step in range(min(total_steps, 200))]
    end = schedule.factor(total_steps, total_steps)
    assert all(0 <= factor <= 1 for factor in [*factors, end])
    assert factors[0] > 0
    assert schedule.factor(total_steps + 1, total_steps) == end
    assert schedule.factor(10 * total_steps, total_steps) == end


@given(any_schedule().filter(lambda schedule: schedule.name not in JUMPS))
@settings(max_examples=100, deadline=None)
def test_long_runs_have_no_jumps(schedule):
    total_steps = 2000
    factors = [schedule.factor(step, total_steps) for step in range(total_steps + 5)]
    largest = 0.01 + 1 / (schedule.warmup_steps(total_steps) + 1)
    ends = factors[schedule.warmup_steps(total_steps) :]
    assert max(abs(a - b) for a, b in pairwise(factors)) <= largest
    assert max(abs(a - b) for a, b in pairwise(ends)) < 0.01


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.name)
def test_created_by_name(schedule):
    assert schedules.create(schedule.name) == schedule
    assert getattr(schedules, schedule.name)() == schedule


def test_values_by_hand():
    cosine = schedules.cosine(floor=0.1)
    assert cosine.factor(0, 100) == 1
    assert cosine.factor(50, 100) == pytest.approx(0.55)
    assert cosine.factor(100, 100) == pytest.approx(0.1)
    warm = schedules.constant(warmup=0.04)
    assert [warm.factor(step, 100) for step in range(6)] == [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]
    step = schedules.step(every=0.1, gamma=0.5)
    assert [step.factor(n, 10) for n in range(4)] == [1.0, 0.5, 0.25, 0.125]
    assert schedules.exponential(final=0.01).factor(5, 10) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("name", "numbers", "message"),
    [
        ("cosin", {}, "schedule 'cosin' is not known; allowed: constant, "),
        ("cosine", {"flor": 0.1}, "schedule 'cosine' has no 'flor'; allowed: warmup, floor"),
        ("cosine", {"warmup": 1.5}, "cosine: warmup=1.5 is not valid; allowed: 0 <= value <= 1"),
    ],
)
def test_errors_name_what_is_allowed(name, numbers, message):
    with pytest.raises(ValueError, match="allowed") as caught:
        schedules.create(name, **numbers)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.name)
def test_as_torch_scheduler(schedule):
    param = torch.nn.Parameter(torch.zeros(1))
    opt = torch.optim.SGD([{"params": [param], "lr": 0.5}], lr=1.0)
    scheduler = schedules.to_lr_scheduler(opt, schedule, 10)
    for step in range(12):
        assert math.isclose(opt.param_groups[0]["lr"], 0.5 * schedule.factor(step, 10))
        opt.step()
        scheduler.step()
