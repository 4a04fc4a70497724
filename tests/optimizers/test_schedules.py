"""Schedules: bounds, ends, continuity, memory, names, and torch's scheduler interface."""

import io
import math
from dataclasses import asdict
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import optimizers
from optimizers import schedules
from tests.optimizers.helpers import drive, problem
from tests.optimizers.table import SCHEDULES

# What a schedule does that the others do not: fall in jumps, or rise again after the warm-up.
JUMPS = {"step", "multi_step", "cosine_restarts"}
RISES = {"cosine_restarts"}
# The factor after the last step.
ENDS = {
    "constant": lambda s: 1.0,
    "plateau": lambda s: 1.0,
    "exponential": lambda s: s.final,
    "inverse_sqrt": lambda s: (1 + 1 / s.timescale) ** -0.5,
    "step": lambda s: s.gamma ** (math.ceil(1 / s.every - 1e-9) - 1),
    "multi_step": lambda s: s.gamma ** len(s.milestones),
}
kinds = st.sampled_from(list(schedules.SCHEDULES.values()))
BY_SCHEDULE = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.name)


@st.composite
def any_schedule(draw):
    kind = draw(kinds)
    numbers = {
        name: draw((st.integers if row.integer else st.floats)(row.low, row.high))
        for name, row in kind.numbers().items()
    }
    return kind(**numbers)


@given(any_schedule(), st.integers(1, 3000))
@settings(max_examples=300, deadline=None)
def test_factors_stay_in_bounds_and_where_they_ended(schedule, total_steps):
    stride = max(1, total_steps // 200)
    factors = [schedule.factor(step, total_steps) for step in range(0, total_steps, stride)]
    end = schedule.factor(total_steps, total_steps)
    assert all(0 <= factor <= 1 for factor in [*factors, end])
    assert factors[0] > 0
    assert schedule.factor(total_steps + 1, total_steps) == end
    assert schedule.factor(10**9, total_steps) == end
    expected = ENDS.get(schedule.name, lambda s: s.floor)(schedule)
    assert end == pytest.approx(expected, rel=1e-6, abs=1e-12)


@given(any_schedule())
@settings(max_examples=200, deadline=None)
def test_long_runs_have_no_jumps(schedule):
    total_steps = 4000
    warmup_steps = schedule.warmup_steps(total_steps)
    factors = [schedule.factor(step, total_steps) for step in range(total_steps + 5)]
    rise, rest = factors[: warmup_steps + 1], factors[warmup_steps:]
    assert all(0 <= b - a <= 2 / (warmup_steps + 1) for a, b in pairwise(rise))
    if schedule.name not in JUMPS:
        assert max(abs(a - b) for a, b in pairwise(rest)) < 0.06  # the root of the cooldown
    if schedule.name not in RISES:
        assert all(a >= b for a, b in pairwise(rest))
    # nothing happens between the last step of the run and those after it
    assert factors[-6] == pytest.approx(factors[-1], rel=0.05, abs=0.03)


@given(st.floats(0, 1), st.integers(1, 50))
@settings(max_examples=100, deadline=None)
def test_short_and_odd_warmups(warmup, total_steps):
    schedule = schedules.linear(warmup=warmup)
    warmup_steps = schedule.warmup_steps(total_steps)
    factors = [schedule.factor(step, total_steps) for step in range(total_steps)]
    assert all(factor > 0 for factor in factors)
    assert [f < 1 for f in factors[:warmup_steps]] == [True] * warmup_steps
    assert warmup_steps >= total_steps or factors[warmup_steps] == 1


@BY_SCHEDULE
def test_created_by_name(schedule):
    assert schedules.create(schedule.name) == schedule
    assert schedules.create(schedule.name, **asdict(schedule)) == schedule
    assert getattr(schedules, schedule.name)() == schedule
    assert schedule.name in schedules.__all__
    assert type(schedule).__doc__


@BY_SCHEDULE
def test_numbers_are_complete(schedule):
    for name, row in schedule.numbers().items():
        assert row.doc, name
        assert row.default == getattr(schedule, name)
        assert row.low < row.high, name
        assert not row.log or row.low > 0, name
        for bound in (row.low, row.high):
            row.validate(schedule.name, name, bound)


def test_values_by_hand():
    cosine = schedules.cosine(floor=0.1)
    assert [cosine.factor(step, 100) for step in (0, 50, 100)] == pytest.approx([1, 0.55, 0.1])
    warm = schedules.constant(warmup=0.04)
    assert [warm.factor(step, 100) for step in range(6)] == [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]
    step = schedules.step(every=0.1, gamma=0.5)
    assert [step.factor(n, 10) for n in range(4)] == [1.0, 0.5, 0.25, 0.125]
    steps = schedules.multi_step(milestones=(0.3, 0.6), gamma=0.1)
    expected = [1.0] * 3 + [0.1] * 3 + [0.01] * 4
    assert [steps.factor(n, 10) for n in range(10)] == pytest.approx(expected)
    assert schedules.exponential(final=0.01).factor(5, 10) == pytest.approx(0.1)
    assert schedules.polynomial(power=2).factor(5, 10) == pytest.approx(0.25)
    assert schedules.linear().factor(3, 10) == pytest.approx(0.7)
    wsd = schedules.warmup_stable_decay(warmup=0.1, cooldown=0.5, power=0.5)
    factors = [wsd.factor(n, 100) for n in (9, 10, 54, 55, 60, 100)]
    assert factors == pytest.approx([10 / 11, 1, 1, 1, 1 - (5 / 45) ** 0.5, 0])
    sgdr = schedules.cosine_restarts(cycles=3, growth=2.0)
    factors = [sgdr.factor(n, 70) for n in (0, 5, 10, 20, 30, 50, 70)]
    assert factors == pytest.approx([1, 0.5, 1, 0.5, 1, 0.5, 0], abs=1e-12)


def test_inverse_sqrt_is_the_transformers():
    """Vaswani et al. 2017: min(step^-0.5, step·warmup^-1.5), relative to its top."""
    schedule = schedules.inverse_sqrt(warmup=0.1, timescale=0.1 / 0.9)
    for step in range(100, 1000, 50):
        assert schedule.factor(step, 1000) == pytest.approx((step / 100) ** -0.5)


@BY_SCHEDULE
def test_momentum_moves_against_the_learning_rate(schedule):
    momenta = [schedule.momentum(step, 200) for step in range(210)]
    if schedule.name != "one_cycle":
        assert set(momenta) == {None}
        return
    lrs = [schedule.factor(step, 200) for step in range(210)]
    for (a, b), (c, d) in zip(pairwise(lrs), pairwise(momenta), strict=True):
        assert (b - a) * (d - c) <= 0
    top = lrs.index(1.0)
    assert momenta[top] == schedule.momentum_low
    assert momenta[200] == momenta[-1] == pytest.approx(schedule.momentum_high)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("sgd", {"momentum": 0.5}),
        ("sgd", {"momentum": 0.0}),
        ("adamw", {"betas": (0.5, 0.99)}),
        ("lion", {"betas": (0.0, 0.99)}),
    ],
)
def test_optimizers_take_the_cycled_momentum(name, arguments):
    start, grads = problem((3,), 10)
    one, two = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    schedule = schedules.one_cycle()
    cycled = optimizers.create(name, [one], schedule=schedule, total_steps=10, **arguments)
    plain = optimizers.create(name, [two], **arguments)
    scheduler = schedules.to_lr_scheduler(plain, schedule, 10)
    for step, grad in enumerate(grads):
        group = plain.param_groups[0]
        value = group["momentum"] if name == "sgd" else group["betas"][0]
        given = arguments["momentum"] if name == "sgd" else arguments["betas"][0]
        assert value == (schedule.momentum(step, 10) if given else 0.0)
        drive(cycled, one, [grad])
        drive(plain, two, [grad])
        scheduler.step()
        torch.testing.assert_close(one, two, rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("mode", "sign"), [("min", 1.0), ("max", -1.0)], ids=["min", "max"]
)  # fmt: skip
@pytest.mark.parametrize("offset", [-100.0, 0.0, 100.0])
def test_plateau_drops_without_improvement_also_below_zero(mode, sign, offset):
    schedule = schedules.plateau(mode=mode, patience=2, gamma=0.5, rest=1, floor=0.2)

    def scales(metrics):
        memory, seen = {}, []
        for metric in metrics:
            memory = schedule.observe(memory, sign * (offset + metric))
            seen.append(schedule.factor(0, 1, memory))
        return seen

    assert scales(range(0, -9, -1)) == [1.0] * 9
    flat = [1.0] * 3 + [0.5] * 4 + [0.25] * 4 + [0.2] * 4
    assert scales([1.0] * 15) == flat
    assert scales(range(15)) == flat
    assert scales([1.0, *[math.nan] * 14]) == flat
    assert scales([1.0, *[math.inf] * 14]) == flat


def test_plateau_in_the_optimizer_resumes():
    schedule = schedules.plateau(patience=1, gamma=0.5, warmup=0.5)
    start, grads = problem((3,), 8)

    def build():
        param = torch.nn.Parameter(start.clone())
        groups = [{"params": [param], "lr": 0.5}]
        return param, optimizers.AdamW(groups, schedule=schedule, total_steps=4)

    def go(param, opt, grads):
        for grad in grads:
            drive(opt, param, [grad])
            opt.report(1.0)
        return opt.current_lr

    param, opt = build()
    assert go(param, opt, grads) == 0.5 * 0.5**3
    first, half = build()
    go(first, half, grads[:3])
    file = io.BytesIO()
    torch.save(half.state_dict(), file)
    file.seek(0)
    second, resumed = build()
    second.data.copy_(first.data)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert go(second, resumed, grads[3:]) == 0.5 * 0.5**3
    assert torch.equal(param, second)


@pytest.mark.parametrize("schedule", [None, schedules.constant()])
def test_report_needs_a_schedule_that_listens(schedule):
    param = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(TypeError, match=r"takes no metrics; allowed: plateau"):
        optimizers.SGD([param], schedule=schedule).report(1.0)


@pytest.mark.parametrize(
    ("name", "numbers", "message"),
    [
        ("cosin", {}, "schedule 'cosin' is not known; allowed: constant, "),
        ("cosine", {"flor": 0.1}, "schedule 'cosine' has no 'flor'; allowed: warmup, floor"),
        ("cosine", {"warmup": 1.5}, "cosine: warmup=1.5 is not valid; allowed: 0 <= value <= 1"),
        ("plateau", {"mode": "up"}, "plateau: mode='up' is not valid; allowed: 'min', 'max'"),
        ("plateau", {"patience": 1.5}, "plateau: patience=1.5 is not valid; allowed: 0 <= value"),
        ("multi_step", {"milestones": [0.7, 0.3]}, "multi_step: milestones=(0.7, 0.3) is not"),
        ("multi_step", {"milestones": [1.0]}, "multi_step: milestones=(1.0,) is not valid; allo"),
        ("cosine_restarts", {"cycles": 0}, "cosine_restarts: cycles=0 is not valid; allowed: 1 <"),
    ],
)
def test_errors_name_what_is_allowed(name, numbers, message):
    with pytest.raises(ValueError, match="allowed") as caught:
        schedules.create(name, **numbers)
    assert str(caught.value).startswith(message)


@BY_SCHEDULE
def test_as_torch_scheduler(schedule):
    param = torch.nn.Parameter(torch.zeros(1))
    opt = torch.optim.SGD([{"params": [param], "lr": 0.5}], lr=1.0)
    scheduler = schedules.to_lr_scheduler(opt, schedule, 10)
    for step in range(12):
        assert math.isclose(opt.param_groups[0]["lr"], 0.5 * schedule.factor(step, 10))
        opt.step()
        scheduler.step()


@BY_SCHEDULE
def test_torch_scheduler_resumes(schedule):
    def build():
        param = torch.nn.Parameter(torch.zeros(1))
        opt = torch.optim.SGD([param], lr=0.5, momentum=0.9)
        return opt, schedules.to_lr_scheduler(opt, schedule, 30)

    def go(opt, scheduler, steps):
        for _ in range(steps):
            opt.step()
            scheduler.step()
            if schedule.name == "plateau":
                scheduler.report(1.0)
        group = opt.param_groups[0]
        return group["lr"], group["momentum"]

    expected = go(*build(), 25)
    opt, scheduler = build()
    before = go(opt, scheduler, 9)
    file = io.BytesIO()
    torch.save(scheduler.state_dict(), file)
    file.seek(0)
    fresh, resumed = build()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert go(fresh, resumed, 0) == before
    assert go(fresh, resumed, 16) == expected
