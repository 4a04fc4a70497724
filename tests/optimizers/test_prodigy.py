"""Prodigy's estimate belongs to the whole model: several parameters and groups."""

import copy

import pytest
import torch
from torch import nn

import optimizers
from optimizers import stacks
from tests.optimizers.helpers import problem
from tests.reference import relative_error
from tests.references.prodigy import prodigy_model

SHAPES = ((), (7,), (5, 3), (4, 3, 2, 2))
SETTINGS = {"lr": 0.7, "weight_decay": 0.1, "d0": 1e-3}


def model(shapes=SHAPES, steps=50):
    starts, grads = zip(*(problem(shape, steps) for shape in shapes), strict=True)
    return [nn.Parameter(start.clone()) for start in starts], list(zip(*grads, strict=True))


def step(opt, params, grads):
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad.clone()
    opt.step()


@pytest.mark.parametrize("cut", [0, 2])
def test_one_estimate_for_all_parameters_and_groups(cut):
    params, steps = model()
    groups = [{"params": params[:cut]}, {"params": params[cut:]}] if cut else params
    opt = optimizers.create("prodigy", groups, **SETTINGS)
    expected, s = [param.detach().numpy().copy() for param in params], {}
    for t, grads in enumerate(steps, start=1):
        step(opt, params, grads)
        expected = prodigy_model(expected, [grad.numpy() for grad in grads], s, t, **SETTINGS)
        for param, wanted in zip(params, expected, strict=True):
            assert relative_error(param.detach().numpy(), wanted) < 1e-10
        assert opt.param_groups[-1]["shared"]["d"] == pytest.approx(s["d"]["d"], rel=1e-10)
    assert opt.param_groups[0]["shared"]["d"] > SETTINGS["d0"]


def test_the_estimate_reaches_the_distance_and_resumes():
    """On a quadratic d ends near the distance to the minimum, whatever d0 was."""
    target = torch.full((20,), 3.0, dtype=torch.float64)
    param = nn.Parameter(torch.zeros(20, dtype=torch.float64))
    opt = optimizers.create("prodigy", [param], d0=1e-6)

    def go(opt, param, steps):
        for _ in range(steps):
            step(opt, [param], [param.detach() - target])

    go(opt, param, 100)
    twin = nn.Parameter(param.detach().clone())
    resumed = optimizers.create("prodigy", [twin])
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    go(opt, param, 100)
    go(resumed, twin, 100)
    assert torch.equal(param, twin)
    assert 0.5 < opt.param_groups[0]["shared"]["d"] < 10
    assert (param - target).abs().max() < 0.5


def test_gradients_of_zero_move_nothing():
    params, _ = model(((3,),))
    before = params[0].detach().clone()
    opt = optimizers.create("prodigy", params)
    step(opt, params, [torch.zeros_like(before)])
    assert torch.equal(params[0], before)
    assert opt.param_groups[0]["shared"]["d"] == 1e-6


def test_parameters_of_one_shape_are_summed_up_as_any_others(monkeypatch):
    ends = []
    for most in (stacks.MOST, 0):
        monkeypatch.setattr(stacks, "MOST", most)
        source = torch.Generator().manual_seed(4)
        params = [torch.randn(7, generator=source, dtype=torch.float64) for _ in range(5)]
        opt = optimizers.Prodigy(params, lr=1.0, d0=1e-3, weight_decay=0.1, engine="eager")
        for step in range(6):
            for number, param in enumerate(params):
                grad = torch.randn(7, generator=source, dtype=torch.float64)
                param.grad = grad if step > 2 or number < 4 else None
            opt.step()
        ends.append([*params, *(opt.state[param]["s"] for param in params)])
    for together, alone in zip(*ends, strict=True):
        torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
