"""What happens to the tables of kernels while a model trains: moves, copies, threads, gradients."""

import copy
import pickle
import subprocess
import sys
from collections import defaultdict

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import optimizers
from optimizers import clipping, schedules
from optimizers.repeat import Repeat
from tests.optimizers.helpers import drive, generator, problem
from tests.optimizers.test_engines import BY_ENGINE, close, expected


def swap_data(opt, param):
    param.data = param.data.clone()
    return opt


def swap_state(opt, param):
    opt.state[param] = {key: value.clone() for key, value in opt.state[param].items()}
    return opt


def reload(opt, param):
    opt.load_state_dict(copy.deepcopy(opt.state_dict()))
    return opt


def pickled(opt, param):
    param_copy, opt = pickle.loads(pickle.dumps((param, opt)))
    assert opt.param_groups[0]["params"][0] is param_copy
    opt.param_groups[0]["params"][0] = param
    opt.state[param] = opt.state.pop(param_copy)
    return opt


def zeroed_in_place(opt, param):
    opt.zero_grad(set_to_none=False)
    return opt


@BY_ENGINE
@pytest.mark.parametrize("change", [swap_data, swap_state, reload, pickled, zeroed_in_place])
def test_what_moves_during_a_run(engine, change):
    start, grads = problem((64, 33), 8)
    param = nn.Parameter(start.clone())
    opt = optimizers.AdamW([param], lr=0.02, weight_decay=0.3, engine=engine)
    for grad in grads:
        drive(opt, param, [grad])
        opt = change(opt, param)
    close(param, expected("adamw", start, grads, lr=0.02, weight_decay=0.3))


def test_a_copy_goes_its_own_way():
    start, grads = problem((64, 33), 6)
    layer = nn.Linear(33, 64, bias=False, dtype=torch.float64)
    layer.weight.data.copy_(start)
    opt = optimizers.AdamW(layer.parameters(), lr=0.02, weight_decay=0.3, engine="compiled")
    drive(opt, layer.weight, grads[:3])
    layer_copy, opt_copy = copy.deepcopy((layer, opt))
    drive(opt, layer.weight, [grad * 3 for grad in grads[3:]])
    drive(opt_copy, layer_copy.weight, grads[3:])
    close(layer_copy.weight, expected("adamw", start, grads, lr=0.02, weight_decay=0.3))


def test_autograd_sees_that_parameters_changed():
    param = nn.Parameter(torch.ones(3))
    loss = (param * param).sum()
    loss.backward(retain_graph=True)
    optimizers.AdamW([param], engine="compiled").step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_gradients_are_not_kept_alive():
    param = nn.Parameter(torch.ones(1000))
    opt = optimizers.AdamW([param], engine="compiled")
    for _ in range(2):
        param.grad = torch.ones(1000)
        opt.step()
        storage = param.grad.untyped_storage()._weak_ref()
        opt.zero_grad()
        assert torch.UntypedStorage._expired(storage)
        torch.UntypedStorage._free_weak_ref(storage)


# Threads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["adamw", "lamb", "prodigy"])
def test_the_number_of_threads_changes_no_bit(rule):
    ends, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            source = generator("threads")
            params = [
                nn.Parameter(torch.randn(shape, generator=source)) for shape in [(1500, 1401), (9,)]
            ]
            opt = optimizers.create(rule, params, engine="compiled", clip_norm=1.0)
            for _ in range(3):
                for param in params:
                    param.grad = torch.randn(param.shape, generator=source)
                opt.step()
            ends.append([opt.last_grad_norm, *(param.detach() for param in params)])
    finally:
        torch.set_num_threads(before)
    for other in ends[1:]:
        assert other[0] == ends[0][0]
        assert all(torch.equal(a, b) for a, b in zip(other[1:], ends[0][1:], strict=True))


FORK = """
import multiprocessing, os, sys
import torch
import optimizers

torch.set_num_threads(2)
params = [torch.nn.Parameter(torch.ones(1500, 1401)) for _ in range(2)]
opts = [optimizers.create(sys.argv[1], [p], engine="compiled", clip_norm=1.0) for p in params]
for param, opt in zip(params, opts):
    param.grad = torch.ones_like(param)
    opt.step()
opts[0].step()
here, there = (param.detach().numpy() for param in params)  # numpy asks no thread for help


def child():
    opts[1].step()
    os._exit(0 if (here == there).all() else 1)


process = multiprocessing.get_context("fork").Process(target=child)
process.start()
process.join(60)
hangs = process.is_alive()
process.kill()
sys.exit("it hangs" if hangs else process.exitcode)
"""


@pytest.mark.parametrize("rule", ["adamw", "adafactor"])
def test_a_forked_process_steps_without_the_threads_of_its_parent(rule):
    """Of OpenMP's threads none is left there, and waiting for one takes forever."""
    ran = subprocess.run([sys.executable, "-c", FORK, rule], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


# Groups -------------------------------------------------------------------------------------------


def replaced(group):
    group["lr"], group["betas"] = 0.07, (0.5, 0.9)


def within_a_list(group):
    group["lr"] = 0.07
    group["betas"][:] = 0.5, 0.9


def within_a_tensor(group):
    group["lr"].fill_(0.07)
    group["betas"] = (0.5, 0.9)


@BY_ENGINE
@pytest.mark.parametrize("change", [replaced, within_a_list, within_a_tensor])
def test_a_group_that_says_something_else(engine, change):
    start, grads = problem((64, 33), 5)
    param = nn.Parameter(start.clone())
    lr = torch.tensor(0.02, dtype=torch.float64) if change is within_a_tensor else 0.02
    opt = optimizers.AdamW([param], lr=lr, weight_decay=0.3, engine=engine)
    if change is within_a_list:
        opt.param_groups[0]["betas"] = [0.9, 0.999]
    drive(opt, param, grads[:2])
    change(opt.param_groups[0])
    drive(opt, param, grads[2:])
    same = nn.Parameter(start.clone())
    torchs = torch.optim.AdamW([same], lr=0.02, weight_decay=0.3)
    drive(torchs, same, grads[:2])
    replaced(torchs.param_groups[0])
    drive(torchs, same, grads[2:])
    close(param, same.detach())


GROUP_CHANGES = {
    "maximize": lambda opt, group: group.update(maximize=True),
    "weight_decay_mode": lambda opt, group: group.update(weight_decay_mode="l2"),
    "weight_decay": lambda opt, group: group.update(weight_decay=0.0),
    "eps": lambda opt, group: group.update(eps=0.1),
    "clip": lambda opt, group: setattr(opt, "clip", clipping.Clip("clip_value", 0.1)),
    "clip rows": lambda opt, group: setattr(opt, "clip", clipping.Clip("clip_per_layer", 0.1)),
    "other groups": lambda opt, group: setattr(opt, "param_groups", [{**group, "lr": 0.07}]),
    "other state": lambda opt, group: setattr(
        opt, "state", defaultdict(dict, {p: {} for p in opt.state})
    ),
    "schedule": lambda opt, group: setattr(opt, "schedule", schedules.linear()),
    "initial_lr": lambda opt, group: torch.optim.lr_scheduler.ExponentialLR(opt, 0.5).step(),
}


@pytest.mark.filterwarnings("ignore:Detected call of:UserWarning")
@pytest.mark.parametrize("change", GROUP_CHANGES.values(), ids=GROUP_CHANGES)
def test_every_change_between_steps_reaches_the_next(change):
    start, grads = problem((64, 33), 6)
    ends = []
    for engine in ("compiled", "eager"):
        param = nn.Parameter(start.clone())
        opt = optimizers.AdamW([param], lr=0.02, weight_decay=0.3, total_steps=9, engine=engine)
        drive(opt, param, grads[:3])
        change(opt, opt.param_groups[0])
        drive(opt, param, grads[3:])
        ends.append(param.detach())
    close(ends[0], ends[1])
    unchanged = nn.Parameter(start.clone())
    drive(optimizers.AdamW([unchanged], lr=0.02, weight_decay=0.3), unchanged, grads)
    assert not torch.equal(ends[0], unchanged)


@pytest.mark.parametrize("rule", ["sgd", "adamw", "lion"])
def test_steps_like_the_last_change_no_bit(monkeypatch, rule):
    """Two groups, one of two dtypes, a norm over all of them, and a step that is skipped."""
    start, grads = problem((64, 33), 8)
    grads[4][3, 3] = torch.inf
    ends, taken, real = [], [], Repeat.step
    monkeypatch.setattr(Repeat, "step", lambda *args: (taken.append(args), real(*args))[1])
    for forgets in (False, True):
        dtypes = [torch.float32, torch.float64] * 2
        params = [nn.Parameter(start.to(dtype, copy=True)) for dtype in dtypes]
        groups = [{"params": params[:3]}, {"params": params[3:], "lr": 0.03}]
        opt = optimizers.create(rule, groups, engine="compiled", clip_norm=0.1)
        taken.clear()
        for grad in grads:
            opt._last = None if forgets else opt._last
            for param in params:
                param.grad = grad.to(param.dtype)
            opt.step()
        # but the first, and the one after the one that is skipped
        assert (opt.skipped_steps, len(taken)) == (1, 0 if forgets else len(grads) - 2)
        ends.append([*params, torch.tensor(opt.last_grad_norm)])
    assert all(map(torch.equal, *ends))


SCHEDULES = {
    "warmup": schedules.warmup_cosine(warmup=0.25),
    "momentum": schedules.one_cycle(),
    "from zero and back": lambda step: step % 3 / 2,
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("rule", ["sgd", "adamw", "muon", "prodigy"])
def test_every_number_of_a_schedule_reaches_its_step(rule, schedule):
    start, grads = problem((6, 5), 8)
    ends, used = [], set()
    for engine in ("compiled", "eager"):
        param = nn.Parameter(start.clone())
        built_in = {"schedule": schedule, "total_steps": len(grads)}
        on_top = not isinstance(schedule, schedules.Schedule)
        opt = optimizers.create(rule, [param], engine=engine, **({} if on_top else built_in))
        scheduler = torch.optim.lr_scheduler.LambdaLR(opt, schedule) if on_top else None
        for grad in grads:
            drive(opt, param, [grad])
            used.add(opt.current_lr)
            if scheduler is not None:
                scheduler.step()
        ends.append(param.detach())
    close(ends[0], ends[1])
    assert len(used) > 2


@pytest.mark.parametrize("rule", ["adamw", "schedulefree_adamw", "prodigy"])
def test_parameters_come_and_go(rule):
    """A list of a group that is changed in place, and another group."""
    start, grads = problem((6, 5), 8)
    ends = []
    for engine in ("compiled", "eager"):
        params = [nn.Parameter(start.clone()) for _ in range(3)]
        opt = optimizers.create(rule, params[:1], engine=engine, clip_norm=1.0)
        changes = {
            3: lambda opt=opt, params=params: opt.param_groups[0]["params"].append(params[1]),
            5: lambda opt=opt, params=params: opt.add_param_group({"params": [params[2]]}),
            7: lambda opt=opt: opt.param_groups[0]["params"].pop(0),
        }
        for number, grad in enumerate(grads):
            changes.get(number, lambda: None)()
            for param in params:
                param.grad = grad.clone()
            opt.step()
        ends.append(params)
    for compiled, eager in zip(*ends, strict=True):
        close(compiled, eager.detach())
    assert len({tuple(param.flatten().tolist()) for param in ends[0]}) == 3


@BY_ENGINE
def test_a_step_while_evaluating_is_refused_after_many_alike(engine):
    start, grads = problem((6, 5), 4)
    param = nn.Parameter(start.clone())
    opt = optimizers.create("schedulefree_adamw", [param], engine=engine)
    drive(opt, param, grads)
    opt.eval()
    with pytest.raises(RuntimeError, match=r"call train\(\) before step"):
        opt.step()
    opt.train()
    drive(opt, param, grads)


# Who watches --------------------------------------------------------------------------------------


def test_hooks_and_profilers_see_steps_only_while_they_are_there():
    param = nn.Parameter(torch.ones(3))
    opt, seen = optimizers.AdamW([param]), []
    hooks = [
        opt.register_step_pre_hook(lambda *_: seen.append("before")),
        opt.register_step_post_hook(lambda *_: seen.append("after")),
        register_optimizer_step_post_hook(lambda *_: seen.append("after any")),
    ]
    drive(opt, param, [torch.ones(3)])
    for hook in hooks:
        hook.remove()
    drive(opt, param, [torch.ones(3)])
    assert seen == ["before", "after", "after any"]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        opt.step()
    assert "Optimizer.step#AdamW.step" in [event.key for event in profile.key_averages()]
