"""Checkpoints from and into torch.optim where names alone do not say which rule it is."""

import pytest
import torch
from torch import nn

import optimizers
from tests.optimizers.helpers import drive, problem
from tests.reference import relative_error

START, GRADS = problem((5, 3), 12)


def begun(kind, **arguments):
    """A parameter after five steps, and its optimizer."""
    param = nn.Parameter(START.clone())
    opt = kind([param], **arguments)
    drive(opt, param, GRADS[:5])
    return param, opt


def goes_on(param, opt, kind, **arguments):
    """Where a second optimizer ends that takes over from the first."""
    twin = nn.Parameter(param.detach().clone())
    second = kind([twin], **arguments)
    second.load_state_dict(opt.state_dict())
    return drive(second, twin, GRADS[5:])[-1]


@pytest.mark.parametrize(
    ("theirs", "arguments", "ours"),
    [
        (torch.optim.Adam, {"amsgrad": True}, "adam"),
        (torch.optim.AdamW, {"amsgrad": True}, "adamw"),
        (torch.optim.Adam, {}, "amsgrad"),
    ],
)
def test_another_rule_is_refused(theirs, arguments, ours):
    _, opt = begun(theirs, **arguments)
    mine = optimizers.create(ours, [nn.Parameter(START.clone())])
    with pytest.raises(ValueError, match=r"the checkpoint has amsgrad=(True|False); allowed: "):
        mine.load_state_dict(opt.state_dict())


@pytest.mark.parametrize("name", ["Adam", "RAdam", "NAdam"])
@pytest.mark.parametrize("decoupled", [True, False])
def test_the_place_of_weight_decay_crosses_both_ways(name, decoupled):
    theirs, ours = getattr(torch.optim, name), getattr(optimizers, name)
    settings = {"lr": 0.1, "weight_decay": 0.3}
    mode = "decoupled" if decoupled else "l2"
    param, opt = begun(theirs, decoupled_weight_decay=decoupled, **settings)
    twin, mine = begun(ours, weight_decay_mode=mode, **settings)
    there = goes_on(param, opt, ours)
    back = goes_on(twin, mine, theirs)
    expected = drive(opt, param, GRADS[5:])[-1]
    assert relative_error(there.numpy(), expected.numpy()) < 1e-7
    assert relative_error(back.numpy(), expected.numpy()) < 1e-7


def test_adagrad_in_torch_knows_parameters_without_a_gradient():
    """torch's Adagrad makes its state in the constructor and looks for it in checkpoints."""
    busy, idle = (nn.Parameter(START.clone()) for _ in range(2))
    opt = optimizers.Adagrad([busy, idle], initial_accumulator_value=0.5)
    drive(opt, busy, GRADS[:3])
    assert idle not in opt.state
    twin, late = (nn.Parameter(START.clone()) for _ in range(2))
    theirs = torch.optim.Adagrad([twin, late])
    theirs.load_state_dict(opt.state_dict())
    idle.grad, late.grad = GRADS[3].clone(), GRADS[3].clone()
    opt.step()
    theirs.step()
    torch.testing.assert_close(late, idle, rtol=1e-13, atol=0)
