"""Rules that see more than one tensor: each hook driven by the smallest rule that needs it."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from optimizers.core import Hyper, ModelHook, Partner, Points, Values
from optimizers.optimizer import make_class
from optimizers.rules import get_rule
from tests.optimizers.helpers import problem

SGD = get_rule("sgd")


def params_of(*shapes):
    params = [nn.Parameter(problem(shape, 1)[0]) for shape in shapes]
    for param in params:
        param.grad = problem(tuple(param.shape), 2)[1][1]
    return params


def test_sums_over_the_model_are_shared_and_saved():
    def partial(grad, param, state, hyper, t):
        return {"square": (grad * grad).sum()}, state

    def combine(sums, shared, hyper, t):
        return {"total": shared["total"] + sums["square"].sqrt()}

    hook = ModelHook(lambda hyper: {"total": 0.0}, partial, combine)
    rule = replace(
        SGD, scope="model", model=hook, update=lambda g, p, s, h, t: (g / h.total, s)
    )  # fmt: skip
    params = params_of((4, 3), (3,))
    starts = [param.detach().clone() for param in params]
    opt = make_class(rule)([{"params": [p]} for p in params], lr=1.0)
    norm = torch.cat([p.grad.flatten() for p in params]).norm()
    opt.step()
    for param, start in zip(params, starts, strict=True):
        torch.testing.assert_close(param.detach(), start - param.grad / norm)
    opt.step()
    assert opt.state_dict()["param_groups"][1]["shared"] == pytest.approx(
        {"total": 2 * norm.item()}
    )


def test_evaluation_point():
    points = Points(lambda p, s, h: p + 10)
    rule = replace(get_rule("lion"), points=points)
    (param,) = params_of((3,))
    opt = make_class(rule)([param], lr=0.1)
    opt.step()
    train = param.detach().clone()
    opt.eval()
    opt.eval()
    torch.testing.assert_close(param.detach(), train + 10)
    with pytest.raises(RuntimeError, match=r"call train\(\) before step"):
        opt.step()
    opt.train()
    assert torch.equal(param.detach(), train)
    assert "train_point" not in opt.state[param]
    opt.step()


def test_update_hessian_changes_state_only():
    def observe(grad, param, state, hyper, t):
        return {**state, "hessian": grad * grad}

    rule = replace(
        SGD,
        state=lambda p, h: {"hessian": torch.zeros_like(p)},
        observe=observe,
        update=lambda g, p, s, h, t: (g / s["hessian"], s),
    )
    (param,) = params_of((3,))
    start = param.detach().clone()
    opt = make_class(rule)([param], lr=1.0)
    opt.update_hessian()
    assert torch.equal(param.detach(), start)
    opt.step()
    torch.testing.assert_close(param.detach(), start - 1 / param.grad)
    with pytest.raises(TypeError, match="SGD keeps no Hessian estimate"):
        make_class(SGD)([param], lr=1.0).update_hessian()


@pytest.fixture
def split_class():
    partner = Partner(
        "adamw", lambda p: p.dim() == 2, {"lr": "adamw_lr", "weight_decay": "weight_decay"}
    )
    hypers = {**SGD.hypers, "adamw_lr": Hyper(1e-3, 1e-4, 1e-2, at_least=0.0)}
    return make_class(replace(SGD, partner=partner, hypers=hypers))


def test_partner_takes_what_the_rule_cannot_handle(split_class):
    matrix, vector = params_of((4, 3), (3,))
    twin = nn.Parameter(vector.detach().clone())
    twin.grad = vector.grad
    start = matrix.detach().clone()
    opt = split_class([matrix, vector], lr=0.5, adamw_lr=0.25, weight_decay=0.1)
    adamw = make_class(get_rule("adamw"))([twin], lr=0.25, weight_decay=0.1)
    opt.step()
    adamw.step()
    torch.testing.assert_close(matrix.detach(), start - 0.5 * (matrix.grad + 0.1 * start))
    assert torch.equal(vector, twin)
    assert [group.get("rule") for group in opt.param_groups] == [None, "adamw"]
    make_class(SGD)([twin], lr=0.5).step()  # the rule that it was made from is as it was


def test_a_group_may_name_its_rule(split_class):
    matrix, vector = params_of((4, 3), (3,))
    named = [("head", matrix), ("bias", vector)]
    opt = split_class([{"params": named, "rule": "adamw", "lr": 0.125}])
    assert [group["lr"] for group in opt.param_groups] == [0.125]
    assert opt.param_groups[0]["param_names"] == ["head", "bias"]
    assert opt.hyper(opt.param_groups[0]).beta2 == 0.999


def test_decay_inside_the_rule():
    seen = []

    def update(grad, param, state, hyper, t):
        seen.append(hyper.weight_decay)
        return grad + hyper.weight_decay * param, state

    rule = replace(SGD, update=update, weight_decay_mode="inside")
    for mode in (None, "decoupled"):
        (param,) = params_of((3,))
        start = param.detach().clone()
        numbers = {"lr": 0.5, "weight_decay": 0.1, "engine": "eager"}  # which calls it once
        opt = make_class(rule)([param], **numbers, weight_decay_mode=mode)
        opt.step()
        torch.testing.assert_close(param.detach(), start - 0.5 * (param.grad + 0.1 * start))
    assert seen == [0.1, 0.0]
    with pytest.raises(ValueError, match="weight_decay_mode='inside' is not valid; allowed: l2"):
        make_class(SGD)([param], weight_decay_mode="inside")


def test_defaults_as_values():
    assert SGD.values(momentum=0.5) == Values(
        lr=1e-2, momentum=0.5, dampening=0.0, weight_decay=0.0, nesterov=False
    )
