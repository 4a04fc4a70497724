"""Schedule-free rules: where they evaluate, and that an evaluation changes nothing."""

import copy

import pytest
import torch
from torch import nn

import optimizers
from tests.optimizers.helpers import drive, problem
from tests.reference import relative_error, run
from tests.references import schedulefree

RULES = pytest.mark.parametrize(
    ("name", "formula"),
    [("schedulefree_sgd", schedulefree.sgd), ("schedulefree_adamw", schedulefree.adamw)],
)
SETTINGS = {"lr": 0.1, "weight_decay": 0.1, "warmup_steps": 5}


@RULES
def test_evaluates_at_the_average(name, formula):
    start, grads = problem((5, 3), 30)
    param = nn.Parameter(start.clone())
    opt = optimizers.create(name, [param], **SETTINGS)
    averages = []

    def watched(p, g, s, t, **settings):
        new = formula(p, g, s, t, **settings)
        averages.append(s["x"])
        return new

    run(watched, start.numpy(), [grad.numpy() for grad in grads], **SETTINGS)
    for grad, average in zip(grads, averages, strict=True):
        opt.train()
        drive(opt, param, [grad])
        opt.eval()
        assert relative_error(param.detach().numpy(), average) < 1e-10


@RULES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_evaluation_changes_no_bit_of_the_training(name, formula, dtype):
    start, grads = problem((5, 3), 10, dtype)
    one, two = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    straight = optimizers.create(name, [one], **SETTINGS)
    watched = optimizers.create(name, [two], **SETTINGS)
    drive(straight, one, grads)
    for grad in grads:
        drive(watched, two, [grad])
        watched.eval()
        watched.train()
    assert torch.equal(one, two)


@RULES
def test_resumes_from_a_checkpoint_at_the_evaluation_point(name, formula):
    start, grads = problem((5, 3), 10, torch.bfloat16)
    param = nn.Parameter(start.clone())
    opt = optimizers.create(name, [param], **SETTINGS)
    drive(opt, param, grads[:5])
    opt.eval()
    twin = nn.Parameter(param.detach().clone())
    resumed = optimizers.create(name, [twin], lr=1.0)
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    for one, optimizer in ((param, opt), (twin, resumed)):
        optimizer.train()
        drive(optimizer, one, grads[5:])
    assert torch.equal(param, twin)


@RULES
def test_a_learning_rate_of_zero_moves_nothing(name, formula):
    start, grads = problem((5, 3), 6)
    param = nn.Parameter(start.clone())
    opt = optimizers.create(name, [param], **SETTINGS)
    before = drive(opt, param, grads[:3])[-1]
    opt.param_groups[0]["lr"] = 0.0
    assert torch.equal(drive(opt, param, grads[3:])[-1], before)
    fresh = nn.Parameter(start.clone())
    assert torch.equal(drive(optimizers.create(name, [fresh], lr=0.0), fresh, grads)[-1], start)


@RULES
def test_decay_beside_the_rule_is_refused(name, formula):
    with pytest.raises(ValueError, match="'decoupled' is not valid; allowed: l2, inside"):
        optimizers.create(name, [nn.Parameter(torch.zeros(3))], weight_decay_mode="decoupled")
