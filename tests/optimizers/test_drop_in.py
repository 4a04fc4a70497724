"""Every rule in the place of a torch optimizer: schedulers, scaler, hooks, groups, checkpoints."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import optimizers
from optimizers import schedules
from tests.optimizers.helpers import drive, problem
from tests.optimizers.table import ROWS

BY_ROW = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.rule)
PEERS = [row for row in ROWS if row.torch_class]
BY_PEER = pytest.mark.parametrize("row", PEERS, ids=lambda row: row.rule)


def leaf(start):
    return nn.Parameter(start.clone())


def ours(row, params, **arguments):
    return optimizers.create(row.rule, params, **{**row.settings[-1], **arguments})


def same_checkpoint(actual, expected):
    assert actual["param_groups"] == expected["param_groups"]
    torch.testing.assert_close(actual["state"], expected["state"], rtol=0, atol=0)


def pair(row, shape=(5, 3), steps=12):
    """A start, its gradients, and our optimizer beside torch's on a parameter each."""
    start, grads = problem(shape, steps)
    settings = next(s for s in reversed(row.settings) if not set(s) & set(row.only_ours))
    mine, theirs = leaf(start), leaf(start)
    opt = optimizers.create(row.rule, [mine], **settings)
    peer = row.torch_class(
        [theirs], **optimizers.get_rule(row.rule).pack(settings), **row.torch_fixed
    )
    return grads, (mine, opt), (theirs, peer)


# Gradients that come late, never, or not finite --------------------------------------------------


@BY_ROW
def test_gradients_that_come_late_or_never(row):
    """A parameter counts its own updates: from step 7 on it moves like one that just began."""
    start, grads = problem((5, 3), 10)
    busy, late, never, alone = (leaf(start) for _ in range(4))
    opt = ours(row, [busy, late, never])
    for step, grad in enumerate(grads):
        busy.grad = grad
        late.grad = grads[step - 6].clone() if step >= 6 else None
        opt.step()
    reference = ours(row, [alone])
    drive(reference, alone, grads[:4])
    assert torch.equal(never, start)
    assert never not in opt.state
    assert not torch.equal(late, start)
    # sums over all parameters are shared by design
    if optimizers.get_rule(row.rule).scope != "model":
        torch.testing.assert_close(late, alone, rtol=1e-13, atol=0)


@BY_ROW
def test_a_first_step_in_inference_mode_is_like_any_other(row):
    start, grads = problem((5, 3), 4)
    finals = []
    for mode in (torch.inference_mode, torch.enable_grad):
        param = leaf(start)
        opt = ours(row, [param])
        with mode():
            drive(opt, param, grads[:1])
        drive(opt, param, grads[1:])
        copy.deepcopy(opt)
        finals.append(param.detach())
    assert torch.equal(*finals)


@BY_ROW
def test_a_first_step_that_is_skipped_never_happened(row):
    start, grads = problem((5, 3), 4)
    ends = []
    for bad in ([], [torch.full_like(start, float("nan"))]):
        param = leaf(start)
        schedule = schedules.warmup_cosine(warmup=0.5)
        opt = ours(row, [param], schedule=schedule, total_steps=5)
        drive(opt, param, bad)
        assert torch.equal(param, start)
        assert not opt.state.get(param)
        ends.append(drive(opt, param, grads)[-1])
    assert torch.equal(*ends)


@BY_ROW
def test_a_group_without_any_gradient(row):
    start, grads = problem((5, 3), 2)
    param, idle = leaf(start), leaf(start)
    opt = ours(row, [{"params": [idle]}, {"params": [param]}])
    drive(opt, param, grads)
    assert torch.equal(idle, start)
    assert not torch.equal(param, start)
    idle.grad = param.grad = None
    before = param.detach().clone()
    opt.step()
    assert torch.equal(param, before)


# Groups ---------------------------------------------------------------------------------------


@BY_ROW
def test_values_changed_in_place(row):
    """What stands in a group counts from the next step on, as when it had always stood there."""
    start, grads = problem((5, 3), 4)
    one, two = leaf(start), leaf(start)
    settings = {key: value for key, value in row.settings[-1].items() if key != "weight_decay"}
    changed = optimizers.create(row.rule, [one], **{**settings, "lr": 0.5, "weight_decay": 0.25})
    group = changed.param_groups[0]
    group["lr"], group["weight_decay"] = torch.tensor(0.01, dtype=torch.float64), 0.1
    constant = optimizers.create(row.rule, [two], **{**settings, "lr": 0.01, "weight_decay": 0.1})
    torch.testing.assert_close(
        drive(changed, one, grads), drive(constant, two, grads), rtol=1e-13, atol=0
    )


@BY_ROW
def test_groups_added_in_the_middle(row):
    """They join the schedule where the run is, with a state of their own."""
    start, grads = problem((5, 3), 8)
    first, second = leaf(start), leaf(start)
    schedule = schedules.linear()
    opt = ours(row, [first], schedule=schedule, total_steps=8)
    drive(opt, first, grads[:4])
    opt.add_param_group({"params": [second], "lr": 0.25})
    for grad in grads[4:]:
        first.grad, second.grad = grad.clone(), grad.clone()
        opt.step()
    expected = schedule.factor(7, 8)
    assert opt.current_lrs[-1] == pytest.approx(0.25 * expected)
    assert opt.state[first]["step"] == 8
    assert opt.state[second]["step"] == 4
    assert not torch.equal(second, start)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"lr": -1.0}, "AdamW: lr=-1.0 is not valid"),
        ({"betas": (0.9, 1.0)}, "AdamW: beta2=1.0 is not valid"),
        ({"betas": (0.9,)}, r"AdamW: betas=\(0.9,\) is not valid; allowed: 2 numbers"),
        ({"weight_decay_mode": "cubic"}, "weight_decay_mode='cubic' is not valid; allowed: l2"),
    ],
)
def test_bad_groups_are_refused_and_leave_nothing(group, message):
    opt = optimizers.AdamW([leaf(torch.ones(2))])
    with pytest.raises(ValueError, match=message):
        opt.add_param_group({"params": [leaf(torch.ones(2))], **group})
    assert len(opt.param_groups) == 1


# What torch puts around an optimizer ----------------------------------------------------------

SCHEDULERS = {
    "cosine": lambda opt: lr_scheduler.CosineAnnealingLR(opt, T_max=10),
    "one_cycle": lambda opt: lr_scheduler.OneCycleLR(opt, max_lr=0.1, total_steps=14),
    "sequence": lambda opt: lr_scheduler.SequentialLR(
        opt,
        [lr_scheduler.LinearLR(opt, 0.1, total_iters=4), lr_scheduler.ExponentialLR(opt, 0.9)],
        milestones=[4],
    ),
    "plateau": lambda opt: lr_scheduler.ReduceLROnPlateau(opt, patience=2),
}


def walk(name, scheduler, param, opt, grads):
    for grad in grads:
        drive(opt, param, [grad])
        scheduler.step(1.0) if name == "plateau" else scheduler.step()


@BY_PEER
@pytest.mark.parametrize("name", SCHEDULERS)
def test_torch_schedulers_on_top(row, name):
    """They change lr, and OneCycleLR momentum or betas, in both optimizers alike."""
    if (
        name == "one_cycle"
        and not {"momentum", "betas"} & optimizers.get_rule(row.rule).arguments.keys()
    ):
        name = "cosine"
    grads, (mine, opt), (theirs, peer) = pair(row)
    for param, optimizer in ((mine, opt), (theirs, peer)):
        walk(name, SCHEDULERS[name](optimizer), param, optimizer, grads)
    torch.testing.assert_close(mine, theirs, rtol=10 * row.torch_error, atol=1e-12)
    assert opt.param_groups[0]["lr"] == peer.param_groups[0]["lr"]


@BY_ROW
def test_schedule_and_scheduler_multiply(row):
    start, grads = problem((5, 3), 4)
    param = leaf(start)
    opt = ours(row, [param], lr=0.5, schedule=schedules.linear(), total_steps=10)
    scheduler = lr_scheduler.ExponentialLR(opt, 0.5)
    for step, grad in enumerate(grads):
        drive(opt, param, [grad])
        scheduler.step()
        assert opt.current_lr == pytest.approx(0.5 * 0.5**step * (1 - step / 10))


@BY_ROW
def test_copies_with_a_scheduler_attached(row):
    start, grads = problem((5, 3), 6)
    param = leaf(start)
    opt = ours(row, [param])
    lr_scheduler.StepLR(opt, 1)
    drive(opt, param, grads[:3])
    clones = [copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))]
    expected = drive(opt, param, grads[3:])[-1]
    for clone in clones:
        twin = clone.param_groups[0]["params"][0]
        assert torch.equal(drive(clone, twin, grads[3:])[-1], expected)


@BY_ROW
def test_gradient_scaler_on_the_cpu(row):
    """Scaled losses give the step of plain ones; an overflow skips it and lowers the scale."""
    start, targets = problem((5, 3), 5)
    plain, scaled = leaf(start), leaf(start)
    reference, opt = ours(row, [plain], clip_norm=0.5), ours(row, [scaled], clip_norm=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step, target in enumerate(targets):
        if step == 2:
            before = scaled.detach().clone(), copy.deepcopy(opt.state_dict())
            opt.zero_grad()
            scaler.scale((scaled * float("inf")).sum()).backward()
            scaler.unscale_(opt)
            scaler.step(opt)
            scaler.update()
            assert scaler.get_scale() == 2.0**9
            assert torch.equal(scaled, before[0])
            same_checkpoint(opt.state_dict(), before[1])
        for param, optimizer in ((plain, reference), (scaled, opt)):
            optimizer.zero_grad()
            loss = ((param - target) ** 2).sum()
            if optimizer is opt:
                scaler.scale(loss).backward()
                scaler.step(opt)
                scaler.update()
            else:
                loss.backward()
                optimizer.step()
        assert torch.equal(plain, scaled)
        assert opt.last_grad_norm == reference.last_grad_norm


@BY_ROW
def test_accumulated_gradients_are_one_step(row):
    start, targets = problem((5, 3), 4)
    whole, parts = leaf(start), leaf(start)
    one, two = ours(row, [whole], clip_norm=1.0), ours(row, [parts], clip_norm=1.0)
    (sum(((whole - target) ** 2).sum() for target in targets) / 4).backward()
    for target in targets:
        (((parts - target) ** 2).sum() / 4).backward()
    one.step()
    two.step()
    torch.testing.assert_close(whole, parts, rtol=1e-12, atol=0)
    assert two.state[parts]["step"] == 1


@BY_ROW
def test_closures_and_hooks(row):
    start, _ = problem((5, 3), 1)
    param = leaf(start)
    opt = ours(row, [param])
    calls = []
    opt.register_step_pre_hook(lambda *_: calls.append("before"))
    opt.register_step_post_hook(lambda *_: calls.append("after"))

    def closure():
        assert torch.is_grad_enabled()
        calls.append("closure")
        opt.zero_grad()
        loss = (param**2).sum()
        loss.backward()
        return loss

    loss = opt.step(closure)
    assert calls == ["before", "closure", "after"]
    assert loss.item() == pytest.approx((start**2).sum().item())
    opt.step(closure)  # the first one of some rules only fills their state
    assert not torch.equal(param, start)


# Checkpoints ----------------------------------------------------------------------------------


@BY_ROW
def test_hooks_see_what_is_saved_and_loaded(row):
    start, grads = problem((5, 3), 4)
    param = leaf(start)
    opt = ours(row, [param])
    drive(opt, param, grads[:2])
    opt.register_state_dict_post_hook(lambda _, saved: {**saved, "extra": 1})
    saved = opt.state_dict()
    assert saved["extra"] == 1
    other = leaf(param)
    resumed = ours(row, [other])
    seen = []
    resumed.register_load_state_dict_pre_hook(
        lambda _, state: {**state, "state": {0: {**state["state"][0], "step": torch.tensor(5.0)}}}
    )
    resumed.register_load_state_dict_post_hook(
        lambda new: seen.append(new.state[other]["step"].item())
    )
    resumed.load_state_dict(saved)
    assert seen == [5.0]


@BY_ROW
def test_checkpoints_share_nothing_and_load_safely(row):
    start, grads = problem((5, 3), 6)
    param = leaf(start)
    groups = [{"params": [("weight", param)], "lr": 0.01}]
    opt = ours(row, groups, clip_norm=1.0, schedule=schedules.one_cycle(), total_steps=6)
    drive(opt, param, grads[:3])
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    kept = copy.deepcopy(saved)
    other = leaf(param)
    resumed = ours(
        row, [{"params": [("weight", other)], "lr": 9.0}], clip_norm=1.0,
        schedule=schedules.one_cycle(), total_steps=6,
    )  # fmt: skip
    resumed.load_state_dict(saved)
    assert resumed.current_lrs == [resumed.hyper(resumed.param_groups[0]).lr]
    same_checkpoint(resumed.state_dict(), kept)
    assert torch.equal(drive(resumed, other, grads[3:])[-1], drive(opt, param, grads[3:])[-1])
    same_checkpoint(saved, kept)


@BY_ROW
def test_saved_before_the_first_step(row):
    start, grads = problem((5, 3), 2)
    one, two = leaf(start), leaf(start)
    opt, resumed = ours(row, [one]), ours(row, [two])
    resumed.load_state_dict(opt.state_dict())
    assert torch.equal(drive(opt, one, grads)[-1], drive(resumed, two, grads)[-1])


@BY_PEER
def test_torch_takes_over_in_half_precision(row):
    """A checkpoint of bfloat16 training goes to torch and back."""
    start, grads = problem((5, 3), 3, torch.bfloat16)
    settings = next(s for s in row.settings if not set(s) & set(row.only_ours))
    arguments = optimizers.get_rule(row.rule).pack(settings)
    mine, theirs = leaf(start), leaf(start)
    opt = optimizers.create(row.rule, [mine], **settings)
    peer = row.torch_class([theirs], **arguments, **row.torch_fixed)
    drive(opt, mine, grads)
    peer.load_state_dict(opt.state_dict())
    drive(peer, theirs, grads)
    opt.load_state_dict(peer.state_dict())
    drive(opt, mine, grads)
    # torch's SGD and Muon do not count
    assert opt.state[mine]["step"] in (6, 9)


def test_a_checkpoint_of_another_model_is_refused():
    opt = optimizers.AdamW([leaf(torch.ones(3))])
    other = optimizers.AdamW([leaf(torch.ones(3)), leaf(torch.ones(2))])
    with pytest.raises(ValueError, match="doesn't match the size"):
        opt.load_state_dict(other.state_dict())


def test_a_checkpoint_of_other_shapes_is_refused():
    first, other = leaf(torch.ones(3)), leaf(torch.ones(2, 3))
    opt = optimizers.AdamW([first])
    drive(opt, first, [torch.ones(3)])
    message = r"exp_avg has shape \(3,\); allowed for a parameter of shape \(2, 3\): \(2, 3\)"
    with pytest.raises(ValueError, match=message):
        optimizers.AdamW([other]).load_state_dict(opt.state_dict())


@pytest.mark.parametrize("engine", ["fast", None, ""])
def test_unknown_engine(engine):
    with pytest.raises(ValueError, match=r"engine=.* is not valid; allowed: auto, eager") as caught:
        optimizers.AdamW([leaf(torch.ones(3))], engine=engine)
    assert "\n" not in str(caught.value)
