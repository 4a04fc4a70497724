"""Sophia with its Hessian: against the paper, in a loop as documented, and across a resume."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import optimizers
from tests.optimizers.helpers import problem
from tests.reference import relative_error
from tests.references.sophia import sophia


def go(opt, param, grads, sampled):
    for grad, extra in zip(grads, sampled, strict=True):
        if opt.hessian_due:
            param.grad = extra.clone()
            opt.update_hessian()
        param.grad = grad.clone()
        opt.step()
        yield param.detach().clone()


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": 0.02, "rho": 0.01, "bs": 32, "update_period": 1, "weight_decay": 0.0},
        {"lr": 0.02, "beta1": 0.5, "beta2": 0.9, "rho": 0.5, "bs": 1, "update_period": 3},
        {"lr": 0.1, "rho": 0.04, "bs": 100, "update_period": 10, "weight_decay": 0.3},
    ],
)
@pytest.mark.parametrize("shape", [(), (5, 3)])
def test_agrees_with_the_paper(settings, shape):
    start, grads = problem(shape, 50)
    sampled = [grad.flip(0) if shape else grad / 2 for grad in reversed(grads)]
    param = nn.Parameter(start.clone())
    opt = optimizers.create("sophia", [param], **settings)
    p, s, clipped = start.numpy(), {}, []
    flat = {key: value for key, value in settings.items() if key != "update_period"}
    for t, actual in enumerate(go(opt, param, grads, sampled), start=1):
        extra = sampled[t - 1].numpy() if (t - 1) % settings["update_period"] == 0 else None
        before = p
        p = sophia(p, grads[t - 1].numpy(), s, t, sampled=extra, **flat)
        moved = (p - before * (1 - flat["lr"] * flat.get("weight_decay", 0.1))) / flat["lr"]
        clipped.append(np.abs(moved) > 1 - 1e-9)
        assert relative_error(actual.numpy(), p) < 1e-10
    assert np.mean(clipped) < 0.95, "nothing but clipped entries would be tested"


def test_resume_between_two_estimates():
    start, grads = problem((5, 3), 12)
    settings = {"lr": 0.02, "rho": 0.5, "bs": 1, "update_period": 4}
    param = nn.Parameter(start.clone())
    opt = optimizers.create("sophia", [param], **settings)
    list(go(opt, param, grads[:6], grads[:6]))
    twin = nn.Parameter(param.detach().clone())
    resumed = optimizers.create("sophia", [twin], lr=1.0)
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    list(go(opt, param, grads[6:], grads[6:]))
    list(go(resumed, twin, grads[6:], grads[6:]))
    assert torch.equal(param, twin)


def test_an_infinite_gradient_on_sampled_labels_is_skipped():
    start, grads = problem((5, 3), 2)
    param = nn.Parameter(start.clone())
    opt = optimizers.create("sophia", [param])
    list(go(opt, param, grads, grads))
    before = opt.state[param]["hessian"].clone()
    param.grad = torch.full_like(param, float("inf"))
    opt.update_hessian()
    assert torch.equal(opt.state[param]["hessian"], before)
    assert opt.skipped_steps == 1


def test_the_documented_loop_learns():
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    inputs = torch.randn(64, 4)
    targets = inputs[:, :3].argmax(dim=1)
    opt = optimizers.create("sophia", model, lr=0.05, bs=64, update_period=5)
    first = cross_entropy(model(inputs), targets).item()
    estimates = 0
    for _ in range(100):
        if opt.hessian_due:
            logits = model(inputs)
            labels = torch.distributions.Categorical(logits=logits).sample()
            cross_entropy(logits, labels).backward()
            opt.update_hessian()
            opt.zero_grad()
            estimates += 1
        cross_entropy(model(inputs), targets).backward()
        opt.step()
        opt.zero_grad()
    assert estimates == 20
    assert cross_entropy(model(inputs), targets).item() < 0.5 * first
