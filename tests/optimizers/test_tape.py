"""Numbers on a tape are computed again for other inputs, as long as these decide the same."""

import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import optimizers
from optimizers.eager import repeated
from optimizers.eager.tape import Tape, Traced
from optimizers.optimizer import make_class
from optimizers.rules import get_rule
from tests.optimizers.helpers import generator

NUMBERS = st.floats(0.25, 4.0)


def formula(a, b, c):
    """Arithmetic with decisions, in both orders of the operands."""
    if a > b:
        c = 2.0 * c - a
    total = (1 - b) / (1 + c * c) + abs(-c) ** 0.5 - 3 % a
    return total if bool(total) else b


@settings(deadline=None)
@given(*[NUMBERS] * 6)
def test_what_is_on_a_tape_is_what_python_computes(a, b, c, d, e, f):
    tape = Tape([a, b, c])
    found = formula(*(Traced.on(tape, index) for index in range(3)))
    assert float.__eq__(found, formula(a, b, c))
    values = tape.again([d, e, f])
    assert (values is None) == ((a > b) != (d > e) or not formula(d, e, f))
    if values is not None:
        assert values[found.index] == formula(d, e, f)


def test_what_is_computed_twice_is_on_the_tape_once():
    tape = Tape([0.9, 3.0])
    beta, t = Traced.on(tape, 0), Traced.on(tape, 1)
    assert (1 - beta**t).index == (1 - beta**t).index
    assert len(tape.entries) == 2


def test_a_number_that_leaves_the_tape_is_a_decision():
    tape = Tape([2.5])
    steps = list(range(int(Traced.on(tape, 0))))
    assert steps == [0, 1]
    assert tape.again([2.9]) is not None
    assert tape.again([3.1]) is None


def test_a_division_by_zero_is_left_to_a_new_recording():
    tape = Tape([2.0])
    assert float.__eq__(1 / Traced.on(tape, 0), 0.5)
    assert tape.again([0.0]) is None


@cache
def noise(number):
    """A parameter of several pieces, and the gradient of each step."""
    return torch.randn(300, 200, generator=generator("tape", number), dtype=torch.float64)


def trained(rule, changes, **arguments):
    """A parameter after steps before each of which the group changes."""
    param = noise(0).clone().requires_grad_()
    opt = optimizers.create(rule, [param], engine="eager", **arguments)
    for number, change in enumerate(changes, 1):
        opt.param_groups[0].update(change)
        param.grad = noise(number)
        opt.step()
    return param.detach()


CHANGES = (
    {}, {}, {"lr": 0.02}, {"lr": 0.03, "weight_decay": 0.1}, {"weight_decay": 0.0}, {"lr": 0.0},
    {"lr": 0.5}, {}, {}, {},
)  # fmt: skip


@pytest.mark.parametrize("arguments", [{}, {"clip_norm": 1.0}, {"clip_norm": 244.9}], ids=str)
@pytest.mark.parametrize("rule", optimizers.names())
def test_templates_follow_every_number_of_a_group(monkeypatch, rule, arguments):
    """The last limit lies among the gradients' norms, so that some steps clip and some do not."""
    monkeypatch.setattr(repeated, "_templates", {})
    found = trained(rule, CHANGES, **arguments)
    monkeypatch.setattr(repeated.Repeated, "key", lambda self, piece: None)
    expected = trained(rule, CHANGES, **arguments)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


SETTINGS = (
    {"clip_per_layer": 0.5, "weight_decay": 0.1},
    {"clip_norm": 1.0, "schedule": optimizers.schedules.Cosine(), "total_steps": 40},
)


@pytest.mark.parametrize("settings", SETTINGS, ids=["layers", "schedule"])
@pytest.mark.parametrize("rule", optimizers.names())
def test_a_steady_run_records_nothing_anew(monkeypatch, rule, settings):
    """The first steps are special in some: RAdam's sixth is the first that it divides."""
    monkeypatch.setattr(repeated, "_templates", {})
    made, real = [], repeated.Repeated.template
    monkeypatch.setattr(
        repeated.Repeated, "template", lambda *args: (made.append(args), real(*args))[1]
    )
    trained(rule, [{}] * 8, **settings)
    made.clear()
    trained(rule, [{}] * 30, **settings)
    assert len(made) <= 3  # where a number happens to be one, or zero


@pytest.mark.parametrize("number", ["lr", "t"])
def test_a_number_that_no_tape_sees_is_recorded_in_every_step(monkeypatch, number):
    monkeypatch.setattr(repeated, "_templates", {})

    def update(grad, param, state, hyper, t):
        return grad * math.sqrt(hyper.lr if number == "lr" else t), state

    rule = replace(get_rule("sgd"), update=update)
    param = torch.zeros(40_000, dtype=torch.float64, requires_grad=True)
    param.grad = torch.ones_like(param)
    opt = make_class(rule)([param], lr=1.0, momentum=0.0, engine="eager")
    for lr in (1.0, 4.0, 9.0):
        opt.param_groups[0]["lr"] = lr
        opt.step()
    roots = (1, 2, 3) if number == "lr" else (1, 2**0.5, 3**0.5)
    moved = sum(lr * root for lr, root in zip((1, 4, 9), roots, strict=True))
    torch.testing.assert_close(param.detach(), torch.full_like(param, -moved))
    assert not any(repeated._templates.values())


def test_a_rule_may_remember_what_it_computed(monkeypatch):
    """Numbers of a tape that has ended are ordinary ones, and on another tape constants."""
    monkeypatch.setattr(repeated, "_templates", {})
    known = {}

    def update(grad, param, state, hyper, t):
        factor = known.setdefault(hyper.lr, hyper.lr * 2)
        return grad * (factor * hyper.lr), state

    rule = replace(get_rule("sgd"), update=update)
    param = torch.zeros(40_000, dtype=torch.float64, requires_grad=True)
    param.grad = torch.ones_like(param)
    opt = make_class(rule)([param], lr=1.0, momentum=0.0, engine="eager")
    rates = (0.5, 0.25, 0.5, 0.125, 0.25)
    for lr in rates:
        opt.param_groups[0]["lr"] = lr
        opt.step()
    moved = sum(2 * lr**3 for lr in rates)
    torch.testing.assert_close(param.detach(), torch.full_like(param, -moved))


def test_a_learning_rate_in_a_tensor_may_change_in_place(monkeypatch):
    monkeypatch.setattr(repeated, "_templates", {})
    param = torch.zeros(40_000, dtype=torch.float64, requires_grad=True)
    param.grad = torch.ones_like(param)
    rate = torch.tensor(1.0)
    opt = optimizers.create("sgd", [param], lr=rate, momentum=0.0, engine="eager")
    for value in (1.0, 2.0, 4.0):
        rate.fill_(value)
        opt.step()
    torch.testing.assert_close(param.detach(), torch.full_like(param, -7.0))
