"""SAM, ASAM and Lookahead: against NumPy, around every rule, and as torch optimizers."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import optimizers
from optimizers import ASAM, SAM, Lookahead, schedules
from tests.optimizers.helpers import problem
from tests.optimizers.table import ROWS
from tests.reference import relative_error
from tests.references.adam import adamw
from tests.references.sgd import sgd

BY_RULE = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.rule)
KINDS = pytest.mark.parametrize(
    ("kind", "own"), [(SAM, {"rho": 0.1}), (ASAM, {"rho": 0.5}), (Lookahead, {"k": 3})]
)


class Bowl:
    """Two parameters of a function that is no quadratic, and its gradient in NumPy."""

    def __init__(self, dtype=torch.float64):
        self.scales = [problem(shape, 1)[1][0] for shape in ((5, 3), (3,))]
        self.params = [nn.Parameter(problem(shape, 1)[0].to(dtype)) for shape in ((5, 3), (3,))]

    def closure(self):
        for param in self.params:
            param.grad = None
        loss = sum(
            (scale.to(p.dtype) * p).cosh().log().sum()
            for scale, p in zip(self.scales, self.params, strict=True)
        )
        loss.backward()
        return loss

    def arrays(self):
        return [param.detach().numpy().copy() for param in self.params]

    def gradients(self, arrays):
        pairs = zip(self.scales, arrays, strict=True)
        return [scale.numpy() * np.tanh(scale.numpy() * p) for scale, p in pairs]


def uphill(arrays, grads, rho, adaptive):
    """Foret et al. 2021, equation 2; Kwon et al. 2021, equation 3."""
    sizes = [np.abs(p) if adaptive else np.ones_like(p) for p in arrays]
    norm = np.sqrt(sum(np.sum((size * g) ** 2) for size, g in zip(sizes, grads, strict=True)))
    rows = zip(arrays, sizes, grads, strict=True)
    return [p + rho * size**2 * g / (norm + 1e-12) for p, size, g in rows]


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize(
    ("base", "formula", "settings"),
    [
        ("sgd", sgd, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}),
        ("adamw", adamw, {"lr": 0.02, "weight_decay": 0.1}),
    ],
)
def test_sam_agrees_with_the_papers(base, formula, settings, split, adaptive):
    bowl = Bowl()
    params = [{"params": [param]} for param in bowl.params] if split else bowl.params
    opt = SAM(params, base=base, rho=0.2, adaptive=adaptive, **settings)
    arrays, states = bowl.arrays(), [{}, {}]
    for t in range(1, 31):
        opt.step(bowl.closure)
        grads = bowl.gradients(uphill(arrays, bowl.gradients(arrays), 0.2, adaptive))
        rows = zip(arrays, grads, states, strict=True)
        arrays = [formula(p, g, s, t, **settings) for p, g, s in rows]
        for actual, wanted in zip(bowl.arrays(), arrays, strict=True):
            assert relative_error(actual, wanted) < 1e-10


def test_lookahead_agrees_with_the_paper():
    settings = {"lr": 0.05, "weight_decay": 0.1}
    bowl = Bowl()
    opt = Lookahead(bowl.params, base="adamw", k=4, alpha=0.3, **settings)
    arrays, states = bowl.arrays(), [{}, {}]
    slow = arrays
    for t in range(1, 31):
        opt.step(bowl.closure)
        rows = zip(arrays, bowl.gradients(arrays), states, strict=True)
        arrays = [adamw(p, g, s, t, **settings) for p, g, s in rows]
        if t % 4 == 0:
            slow = [s + 0.3 * (p - s) for s, p in zip(slow, arrays, strict=True)]
            arrays = slow
        for actual, wanted in zip(bowl.arrays(), arrays, strict=True):
            assert relative_error(actual, wanted) < 1e-10


def test_two_calls_are_one_step():
    one, two = Bowl(), Bowl()
    whole = SAM(one.params, base="adamw")
    halves = SAM(two.params, base="adamw")
    for _ in range(3):
        whole.step(one.closure)
        two.closure()
        halves.first_step(zero_grad=True)
        assert all(param.grad is None for param in two.params)
        with pytest.raises(RuntimeError, match=r"call second_step\(\) before the next first_step"):
            halves.first_step()
        two.closure()
        halves.second_step(zero_grad=True)
    assert all(torch.equal(a, b) for a, b in zip(one.params, two.params, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [SAM, ASAM])
def test_parameters_come_back_exactly(kind, dtype):
    bowl = Bowl(dtype)
    before = [param.detach().clone() for param in bowl.params]
    opt = kind(bowl.params, base="sgd", lr=0.0, rho=0.3)
    seen = []

    def closure():
        seen.append(torch.equal(bowl.params[0], before[0]))
        return bowl.closure()

    opt.step(closure)
    assert seen == [True, False]
    assert all(torch.equal(a, b) for a, b in zip(bowl.params, before, strict=True))


def test_parameters_come_back_when_the_second_pass_fails():
    bowl = Bowl()
    before = [param.detach().clone() for param in bowl.params]
    opt = SAM(bowl.params, base="sgd", rho=0.3)

    def closure():
        if opt.perturbed:
            raise KeyboardInterrupt
        return bowl.closure()

    with pytest.raises(KeyboardInterrupt):
        opt.step(closure)
    assert all(torch.equal(a, b) for a, b in zip(bowl.params, before, strict=True))
    assert not opt.perturbed


def test_clipping_and_schedule_are_those_of_the_base():
    bowl = Bowl()
    schedule = schedules.linear()
    opt = SAM(
        bowl.params, base="sgd", rho=0.3, lr=0.1, clip_norm=1e-3, schedule=schedule, total_steps=4
    )
    arrays = bowl.arrays()
    opt.step(bowl.closure)
    grads = bowl.gradients(uphill(arrays, bowl.gradients(arrays), 0.3, adaptive=False))
    norm = np.sqrt(sum(np.sum(g**2) for g in grads))
    assert opt.last_grad_norm == pytest.approx(norm, rel=1e-12)
    for actual, p, g in zip(bowl.arrays(), arrays, grads, strict=True):
        assert relative_error(actual - p, -0.1 * 1e-3 * g / norm) < 1e-10
    opt.step(bowl.closure)
    assert opt.current_lr == pytest.approx(0.1 * schedule.factor(1, 4))


@pytest.mark.parametrize("bad_pass", [1, 2])
def test_a_gradient_that_is_not_finite_skips_the_step(bad_pass):
    bowl = Bowl()
    opt = SAM(bowl.params, base="adamw", rho=0.3)
    opt.step(bowl.closure)
    before = copy.deepcopy((bowl.params, opt.state_dict()["state"]))
    calls = []

    def closure():
        calls.append(None)
        loss = bowl.closure()
        if len(calls) >= bad_pass:
            bowl.params[1].grad[0] = float("nan")
        return loss

    opt.step(closure)
    assert opt.skipped_steps == 1
    assert "shape (3,)" in opt.nonfinite_parameter
    for a, b in zip(bowl.params, before[0], strict=True):
        assert torch.equal(a, b)
    for number, state in opt.state_dict()["state"].items():
        assert all(torch.equal(state[key], before[1][number][key]) for key in state)


def test_lookahead_does_not_count_skipped_steps():
    bowl = Bowl()
    opt = Lookahead(bowl.params, base="adamw", k=2)
    opt.step(bowl.closure)
    before = [param.detach().clone() for param in bowl.params]
    for param in bowl.params:
        param.grad = torch.full_like(param, float("inf"))
    opt.step()
    assert all(torch.equal(a, b) for a, b in zip(bowl.params, before, strict=True))
    assert opt.param_groups[0]["lookahead_steps"] == 1


def test_maximize_goes_downhill_first():
    one, two = Bowl(), Bowl()
    up = SAM(one.params, base="sgd", rho=0.3, lr=0.1, maximize=True)
    down = SAM(two.params, base="sgd", rho=0.3, lr=0.1)

    def negative():
        loss = two.closure()
        for param in two.params:
            param.grad.neg_()
        return loss

    up.step(one.closure)
    down.step(negative)
    for a, b in zip(one.params, two.params, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=0)


def test_running_statistics_follow_the_first_pass_only():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    twin = copy.deepcopy(model)
    inputs = torch.randn(16, 4)
    opt = SAM(model.parameters(), base="sgd", rho=0.5, lr=0.1)
    losses = []

    def closure():
        opt.zero_grad()
        with opt.statistics(model):
            loss = model(inputs).square().mean()
        loss.backward()
        losses.append(loss.item())
        return loss

    opt.step(closure)
    twin(inputs)
    for name, buffer in twin.named_buffers():
        assert torch.equal(buffer, dict(model.named_buffers())[name]), name
    assert losses[0] != losses[1]
    assert model[1].track_running_stats
    model.eval()
    with optimizers.frozen_statistics(model):
        evaluated = model(inputs)
    assert torch.equal(evaluated, model(inputs))


@BY_RULE
@KINDS
def test_every_rule_inside_resumes_exactly(row, kind, own):
    settings = {key: value for key, value in row.settings[-1].items() if key not in own}

    def build():
        bowl = Bowl(torch.float32)
        return bowl, kind(bowl.params, base=row.rule, **own, **settings)

    def go(bowl, opt, steps):
        for _ in range(steps):
            opt.step(bowl.closure)

    bowl, opt = build()
    start = bowl.arrays()
    go(bowl, opt, 4)
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    again, resumed = build()
    for mine, theirs in zip(again.params, bowl.params, strict=True):
        mine.data.copy_(theirs.data)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    go(bowl, opt, 5)
    go(again, resumed, 5)
    assert not np.array_equal(bowl.arrays()[0], start[0])
    assert all(torch.equal(a, b) for a, b in zip(bowl.params, again.params, strict=True))


@KINDS
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
@pytest.mark.parametrize("base", ["adamw", torch.optim.AdamW])
def test_copies_are_independent(kind, own, clone, base):
    bowl = Bowl()
    opt = kind(bowl.params, base=base, **own)
    opt.step(bowl.closure)
    bowl_copy, opt_copy = clone((bowl, opt))
    for _ in range(4):
        opt.step(bowl.closure)
    assert not torch.equal(bowl_copy.params[0], bowl.params[0])
    for _ in range(4):
        opt_copy.step(bowl_copy.closure)
    assert opt_copy.param_groups[0]["params"][0] is bowl_copy.params[0]
    assert all(torch.equal(a, b) for a, b in zip(bowl.params, bowl_copy.params, strict=True))


@KINDS
def test_lr_schedulers_and_hooks(kind, own):
    bowl = Bowl()
    opt = kind(bowl.params, base="sgd", lr=0.1, **own)
    scheduler = torch.optim.lr_scheduler.StepLR(opt, 1, gamma=0.5)
    calls = []
    opt.register_step_post_hook(lambda *_: calls.append(opt.current_lr))
    for _ in range(3):
        opt.step(bowl.closure)
        scheduler.step()
    assert calls == [0.1, 0.05, 0.025]
    assert isinstance(opt, torch.optim.Optimizer)


def test_lr_schedulers_see_the_two_calls():
    bowl = Bowl()
    opt = SAM(bowl.params, base="sgd", lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(opt, 1, gamma=0.5)
    bowl.closure()
    opt.first_step()
    opt.second_step()
    scheduler.step()
    assert opt.param_groups[0]["lr"] == 0.05


@KINDS
def test_torch_optimizers_inside(kind, own):
    one, two = Bowl(), Bowl()
    ours = kind(one.params, base="adamw", lr=0.1, **own)
    theirs = kind(two.params, base=torch.optim.AdamW, lr=0.1, **own)
    for _ in range(7):
        ours.step(one.closure)
        theirs.step(two.closure)
    for a, b in zip(one.params, two.params, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=0)


def test_wrappers_nest_and_take_more_groups():
    bowl = Bowl()
    opt = Lookahead(bowl.params[:1], base="sam", lr=0.1, k=2)
    assert (opt.passes, SAM(Bowl().params).passes, Lookahead(Bowl().params).passes) == (2, 2, 1)
    opt.add_param_group({"params": bowl.params[1:], "lr": 0.2})
    start = bowl.arrays()
    for _ in range(2):
        opt.step(bowl.closure)
    assert [group["lookahead_steps"] for group in opt.param_groups] == [2, 2]
    assert all((a != b).any() for a, b in zip(start, bowl.arrays(), strict=True))


def test_created_by_name_for_a_model():
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    opt = optimizers.create("sam", model, base="adamw", rho=0.1, beta1=0.8, weight_decay=0.3)
    assert isinstance(opt, SAM)
    assert sorted(group["weight_decay"] for group in opt.param_groups) == [0.0, 0.3]
    assert {group["betas"] for group in opt.param_groups} == {(0.8, 0.999)}
    assert {group["sam_rho"] for group in opt.param_groups} == {0.1}
    assert optimizers.create("asam", model).param_groups[0]["sam_adaptive"]
    assert optimizers.create("lookahead", model, base="lion").base.rule.name == "lion"


def test_the_base_alone_and_the_wrapper_read_each_others_checkpoints():
    bowl, other = Bowl(), Bowl()
    opt = Lookahead(bowl.params, base="adamw", k=2)
    opt.step(bowl.closure)
    plain = optimizers.create("adamw", other.params)
    opt.load_state_dict(plain.state_dict())
    opt.step(bowl.closure)
    plain.load_state_dict(opt.state_dict())


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("sam", {"rho": -1.0}, "SAM: rho=-1.0 is not valid; allowed: 0 <= value"),
        ("sam", {"adaptive": "yes"}, "SAM: adaptive='yes' is not valid; allowed: False, True"),
        ("lookahead", {"k": 0}, "Lookahead: k=0 is not valid; allowed: 1 <= value"),
        ("lookahead", {"alpha": 2.0}, "Lookahead: alpha=2.0 is not valid; allowed: 0 <= value"),
        ("sam", {"base": "adamww"}, "optimizer 'adamww' is not known; allowed: sgd"),
    ],
)
def test_bad_values_are_named(name, arguments, message):
    with pytest.raises(ValueError, match="is not") as caught:
        optimizers.create(name, Bowl().params, **arguments)
    assert str(caught.value).startswith(message)
    with pytest.raises(TypeError, match=r"step\(\) needs a closure"):
        SAM(Bowl().params).step()


@pytest.mark.parametrize("row", [SAM, Lookahead])
def test_search_ranges_are_valid(row):
    for name, hyper in row.hypers.items():
        assert hyper.doc
        if name != "adaptive":
            assert hyper.source
            for bound in (hyper.default, hyper.low, hyper.high):
                hyper.validate(row.__name__, name, bound)
