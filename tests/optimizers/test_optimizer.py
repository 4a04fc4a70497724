"""The shell: clipping, schedule, skipping, groups, checkpoints, hooks."""

import copy
import io
import logging
import pickle

import pytest
import torch
from torch import nn

import optimizers
from optimizers import AdamW, schedules
from tests.optimizers.helpers import drive, problem
from tests.optimizers.table import ROWS

BY_RULE = pytest.mark.parametrize("name", [row.rule for row in ROWS])


def params_of(*shapes):
    return [nn.Parameter(problem(shape, 1)[0]) for shape in shapes]


def fill(params, scale=1.0):
    for param in params:
        param.grad = scale * problem(tuple(param.shape), 2)[1][1].to(param.dtype)


@BY_RULE
def test_gradients_are_never_changed(name):
    params = params_of((4, 3), (3,))
    fill(params, 100.0)
    before = [param.grad.clone() for param in params]
    opt = optimizers.create(name, params, weight_decay=0.1, clip_norm=0.5, maximize=True)
    opt.step()
    assert all(torch.equal(p.grad, g) for p, g in zip(params, before, strict=True))


@BY_RULE
def test_clip_norm_is_over_all_groups(name):
    mine, theirs = params_of((4, 3), (3,)), params_of((4, 3), (3,))
    fill(mine, 10.0)
    fill(theirs, 10.0)
    opt = optimizers.create(name, [{"params": [p]} for p in mine], clip_norm=1.5)
    opt.step()
    norm = torch.stack([p.grad.norm() for p in theirs]).norm()
    for param in theirs:
        param.grad.mul_(1.5 / norm)
    optimizers.create(name, theirs).step()
    assert opt.last_grad_norm == pytest.approx(norm.item(), rel=1e-14)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-15)


def directions(**clip):
    """What reaches the rule, read off from plain SGD with lr 1."""
    params = params_of((4, 3), (3,))
    fill(params, 3.0)
    before = [param.detach().clone() for param in params]
    optimizers.SGD(params, lr=1.0, **clip).step()
    moved = [old - new.detach() for old, new in zip(before, params, strict=True)]
    return moved, [param.grad for param in params], before


def test_clip_value():
    moved, grads, _ = directions(clip_value=0.7)
    for step, grad in zip(moved, grads, strict=True):
        torch.testing.assert_close(step, grad.clamp(-0.7, 0.7))


def test_clip_per_layer():
    moved, grads, _ = directions(clip_per_layer=0.7)
    for step, grad in zip(moved, grads, strict=True):
        torch.testing.assert_close(step, grad * (0.7 / grad.norm()))


def test_clip_agc():
    moved, grads, params = directions(clip_agc=0.1)
    for row in range(4):
        ratio = moved[0][row].norm() / params[0][row].norm()
        expected = min(0.1, (grads[0][row].norm() / params[0][row].norm()).item())
        assert ratio.item() == pytest.approx(expected)
    assert (moved[1].norm() / params[1].norm()).item() == pytest.approx(0.1)


def test_small_gradients_pass_unclipped_bit_for_bit():
    a, b = params_of((4, 3)), params_of((4, 3))
    fill(a, 1e-3)
    fill(b, 1e-3)
    AdamW(a, clip_norm=1.0).step()
    AdamW(b).step()
    assert torch.equal(a[0], b[0])


def test_two_kinds_of_clipping_are_refused():
    with pytest.raises(ValueError, match="clip_value, clip_norm given together; allowed: one"):
        AdamW(params_of((2,)), clip_norm=1.0, clip_value=1.0)


@BY_RULE
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nonfinite_gradients_skip_the_step(name, bad, caplog):
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    opt = optimizers.create(name, model, clip_norm=1.0)
    params = list(model.parameters())
    fill(params)
    opt.step()
    model[1].weight.grad[0, 1] = bad
    weights = [p.detach().clone() for p in params]
    state = copy.deepcopy(opt.state_dict())
    with caplog.at_level(logging.WARNING, logger="optimizers"):
        opt.step()
    assert all(torch.equal(a, b) for a, b in zip(weights, params, strict=True))
    torch.testing.assert_close(opt.state_dict()["state"], state["state"], rtol=0, atol=0)
    assert opt.state_dict()["param_groups"] == state["param_groups"]
    assert opt.skipped_steps == 1
    assert opt.nonfinite_parameter == "1.weight"
    assert "1.weight" in caplog.text
    fill(params)
    opt.step()
    assert opt.skipped_steps == 1
    assert not any(torch.equal(a, b) for a, b in zip(weights, params, strict=True))


def test_finite_gradients_whose_norm_overflows_are_no_reason_to_skip():
    params = params_of((4, 3))
    params[0].data = params[0].data.float()
    params[0].grad = torch.full((4, 3), 1e30)
    opt = AdamW(params, clip_norm=1.0)
    before = params[0].detach().clone()
    opt.step()
    assert opt.skipped_steps == 0
    assert opt.last_grad_norm == pytest.approx(1e30 * 12**0.5)
    assert not torch.equal(before, params[0])


def test_schedule_multiplies_each_groups_learning_rate():
    params = params_of((3,), (2,))
    schedule = schedules.warmup_cosine(warmup=0.2, floor=0.1)
    groups = [{"params": [params[0]], "lr": 1.0}, {"params": [params[1]], "lr": 0.5}]
    opt = optimizers.SGD(groups, lr=9.0, schedule=schedule, total_steps=10)
    assert opt.current_lr == pytest.approx(schedule.factor(0, 10))
    for step in range(14):
        fill(params)
        before = [p.detach().clone() for p in params]
        opt.step()
        factor = schedule.factor(step, 10)
        assert opt.current_lrs == pytest.approx([factor, 0.5 * factor])
        for param, old, lr in zip(params, before, (1.0, 0.5), strict=True):
            torch.testing.assert_close(param.detach(), old - lr * factor * param.grad)
    assert opt.param_groups[0]["lr"] == 1.0


def test_schedule_needs_the_length_of_the_run():
    with pytest.raises(ValueError, match="schedule 'cosine' needs total_steps"):
        AdamW(params_of((2,)), schedule=schedules.cosine())


def test_independent_decay_follows_the_schedule_and_not_the_learning_rate():
    for lr in (1e-3, 1e-1):
        param = params_of((3,))[0]
        before = param.detach().clone()
        param.grad = torch.zeros_like(param)
        schedule = schedules.exponential(final=0.25)
        opt = optimizers.AdamW(
            [param], lr=lr, weight_decay=0.1, weight_decay_mode="independent",
            schedule=schedule, total_steps=2,
        )  # fmt: skip
        opt.step()
        opt.step()
        torch.testing.assert_close(param.detach(), before * (1 - 0.1) * (1 - 0.05))


@BY_RULE
def test_resume_is_exact(name):
    start, grads = problem((4, 3), 10)

    def build():
        param = nn.Parameter(start.clone())
        schedule = schedules.warmup_cosine(warmup=0.3)
        return param, optimizers.create(name, [param], schedule=schedule, total_steps=10)

    param, opt = build()
    expected = drive(opt, param, grads)[-1]
    first, opt = build()
    drive(opt, first, grads[:4])
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    second, resumed = build()
    second.data.copy_(first.data)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(drive(resumed, second, grads[4:])[-1], expected)


@BY_RULE
def test_copies_are_whole_and_separate(name):
    start, grads = problem((4, 3), 6)
    param = nn.Parameter(start.clone())
    schedule = schedules.cosine()
    opt = optimizers.create(name, [param], clip_norm=0.5, schedule=schedule, total_steps=6)
    drive(opt, param, grads[:3])
    clones = [copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))]
    expected = drive(opt, param, grads[3:])[-1]
    for clone in clones:
        twin = clone.param_groups[0]["params"][0]
        assert torch.equal(drive(clone, twin, grads[3:])[-1], expected)
        assert clone.clip == opt.clip
        assert clone.schedule == schedule


def test_late_and_missing_gradients():
    a, late, never = params_of((3,), (3,), (2,))
    alone = nn.Parameter(late.detach().clone())
    opt = AdamW([a, late, never])
    for step in range(5):
        a.grad = torch.ones(3, dtype=torch.float64)
        if step == 3:
            late.grad = torch.ones(3, dtype=torch.float64)
        opt.step()
    alone.grad = torch.ones(3, dtype=torch.float64)
    reference = AdamW([alone])
    reference.step()
    reference.step()
    torch.testing.assert_close(late, alone)
    assert never not in opt.state


def test_momentum_that_is_switched_on_later_equals_torch():
    start, grads = problem((3,), 6)
    mine, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    pair = [optimizers.SGD([mine], lr=0.1), torch.optim.SGD([theirs], lr=0.1)]
    for opt, param in zip(pair, (mine, theirs), strict=True):
        drive(opt, param, grads[:3])
        opt.param_groups[0].update(momentum=0.9, dampening=0.5)
        drive(opt, param, grads[3:])
    torch.testing.assert_close(mine, theirs)


def test_closure_returns_its_loss():
    param = params_of((3,))[0]
    opt = optimizers.SGD([param], lr=0.1)

    def closure():
        opt.zero_grad()
        loss = (param**2).sum()
        loss.backward()
        return loss

    before = (param.detach() ** 2).sum()
    assert opt.step(closure).item() == pytest.approx(before.item())
    assert (param.detach() ** 2).sum() < before


def test_nesterov_without_momentum_is_refused():
    with pytest.raises(ValueError, match="nesterov=True is not valid; allowed: with momentum > 0"):
        optimizers.SGD(params_of((2,)), nesterov=True)


def test_stub_is_fresh():
    from optimizers import stubs

    assert stubs.PATH.read_text() == stubs.render(), "run python -m optimizers.stubs"
