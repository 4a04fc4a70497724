"""What textbooks and upstream bugs say about single rules: the classic tables, the known traps."""

import pytest
import torch
from torch import nn

import optimizers
from tests.optimizers.helpers import drive, problem
from tests.reference import relative_error


def effective_steps(name, steps, **settings):
    """How far one unit of gradient moves the parameter, with g = 0.5 forever and lr = 0.01."""
    param = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    opt = optimizers.create(name, [param], lr=0.01, **settings)
    param.grad = torch.full_like(param, 0.5)
    seen = []
    for step in range(1, max(steps) + 1):
        before = param.item()
        opt.step()
        if step in steps:
            seen.append((before - param.item()) / 0.5)
    return seen


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("adagrad", {}, {1: 0.0200, 10: 0.0063, 100: 0.0020, 1000: 0.0006, 10_000: 0.0002}),
        ("rmsprop", {"alpha": 0.9}, {1: 0.0632, 10: 0.0248, 100: 0.0200, 1000: 0.0200}),
    ],
)
def test_effective_steps_of_the_classic_table(name, settings, expected):
    """Adagrad's steps die out; RMSprop's settle at lr over the gradient's size."""
    steps = effective_steps(name, list(expected), **settings)
    assert [round(step, 4) for step in steps] == list(expected.values())


@pytest.mark.parametrize(
    ("name", "settings", "arrays"),
    [
        ("sgd", {}, 0),
        ("sgd", {"momentum": 0.9}, 1),
        ("adagrad", {}, 1),
        ("rmsprop", {}, 1),
        ("rmsprop", {"momentum": 0.9, "centered": True}, 3),
        ("lion", {}, 1),
        ("lars", {}, 1),
        ("adam", {}, 2),
        ("adamw", {}, 2),
        ("nadam", {}, 2),
        ("nadamw", {}, 2),
        ("adabelief", {}, 2),
        ("radam", {}, 2),
        ("adopt", {}, 2),
        ("lamb", {}, 2),
        ("amsgrad", {}, 3),
        ("ademamix", {}, 3),
        ("adan", {}, 4),
        ("adafactor", {}, 2 / 1024),
    ],
)
def test_memory_of_the_classic_table(name, settings, arrays):
    """Arrays of state per parameter, as the row says and as a step allocates them."""
    assert optimizers.get_rule(name).memory((1024, 1024), **settings) == arrays
    param = nn.Parameter(torch.zeros(1024, 1024))
    opt = optimizers.create(name, [param], **settings)
    drive(opt, param, [torch.ones_like(param)])
    held = [value for key, value in opt.state[param].items() if key != "step" and value.dim()]
    assert sum(value.numel() for value in held) == arrays * param.numel()


def test_adafactors_memory_below_two_dimensions():
    assert optimizers.get_rule("adafactor").memory((1024,)) == 1


@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_adafactor_takes_the_precision_of_each_parameter(engine):
    """torch's loop takes the first parameter's precision for all that follow."""
    start, grads = problem((5, 3), 5, torch.float32)
    grads = [1e-4 * grad for grad in grads]
    half = nn.Parameter(start.bfloat16())
    after, alone, theirs = (nn.Parameter(start.clone()) for _ in range(3))
    opt = optimizers.Adafactor([half, after], engine=engine)
    for grad in grads:
        half.grad = grad.bfloat16()
        drive(opt, after, [grad])
    drive(optimizers.Adafactor([alone], engine=engine), alone, grads)
    drive(torch.optim.Adafactor([theirs]), theirs, grads)
    assert torch.equal(after, alone)
    torch.testing.assert_close(after, theirs, rtol=1e-5, atol=0)


def test_adafactor_is_the_papers_at_its_defaults():
    """Where eps1 enters makes no difference for gradients of ordinary size."""
    start, grads = problem((5, 3), 50)
    param = nn.Parameter(start.clone())
    path = drive(optimizers.Adafactor([param]), param, grads)
    p, rows, columns = start.clone(), torch.zeros(5, 1), torch.zeros(1, 3)
    for t, (grad, actual) in enumerate(zip(grads, path, strict=True), start=1):
        square, beta = grad**2 + 1e-30, 1 - t**-0.8
        rows = beta * rows + (1 - beta) * square.sum(1, keepdim=True)
        columns = beta * columns + (1 - beta) * square.sum(0, keepdim=True)
        u = grad / (rows @ columns / rows.sum()).sqrt()
        u = u / max(1.0, u.square().mean().sqrt().item())
        p = p - max(1e-3, p.square().mean().sqrt().item()) * min(1e-2, t**-0.5) * u
        assert relative_error(actual.numpy(), p.numpy()) < 1e-12


def test_adafactor_rejects_none_where_it_means_nothing():
    with pytest.raises(TypeError, match=r"Adafactor: eps2=None is not a number; allowed: 0 <= "):
        optimizers.Adafactor([nn.Parameter(torch.zeros(2))], eps=(None, None))


def test_centred_rmsprop_stays_finite_on_equal_gradients():
    """The variance of equal gradients is rounding, sometimes below zero."""
    param = nn.Parameter(torch.zeros(50))
    opt = optimizers.RMSprop([param], alpha=0.5, centered=True)
    drive(opt, param, [torch.linspace(0.1, 7.0, 50)] * 200)
    assert torch.isfinite(param).all()


@pytest.mark.parametrize("name", ["lamb", "lars", "adafactor"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_norms_of_zero_are_no_trouble(name, weight_decay):
    zeros, ones = torch.zeros(3, 2), torch.ones(3, 2)
    for start, grad in ((zeros, ones), (ones, zeros), (zeros, zeros)):
        param = nn.Parameter(start.clone())
        opt = optimizers.create(name, [param], lr=0.1, weight_decay=weight_decay)
        drive(opt, param, [grad] * 3)
        assert torch.isfinite(param).all()
        # from zero a rule leaves when there is a gradient, and only then
        assert torch.equal(param, start) == (not grad.any() and not (weight_decay and start.any()))


def test_lars_leaves_biases_and_normalisation_alone():
    """Below two dimensions neither the ratio nor weight decay applies: it is SGD."""
    start, grads = problem((7,), 10)
    one, two = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    path = drive(optimizers.LARS([one], lr=0.1, weight_decay=0.5), one, grads)
    plain = drive(optimizers.SGD([two], lr=0.1, momentum=0.9), two, grads)
    for actual, expected in zip(path, plain, strict=True):
        assert relative_error(actual.numpy(), expected.numpy()) < 1e-14


def test_adopts_first_gradient_moves_nothing():
    start, grads = problem((5, 3), 2)
    for mode in ("decoupled", "independent"):
        param = nn.Parameter(start.clone())
        opt = optimizers.ADOPT([param], weight_decay=0.1, weight_decay_mode=mode)
        first, second = drive(opt, param, grads)
        assert torch.equal(first, start)
        assert not torch.equal(second, start)


def test_radam_is_momentum_until_it_can_trust_its_square():
    """With beta2 = 0.999 rho first exceeds 5 at the sixth update."""
    start, grads = problem((5, 3), 8)
    param = nn.Parameter(start.clone())
    path = [start, *drive(optimizers.RAdam([param], lr=0.1), param, grads)]
    mean = torch.zeros_like(start)
    for t, grad in enumerate(grads, start=1):
        mean = 0.9 * mean + 0.1 * grad
        momentum_step = 0.1 * mean / (1 - 0.9**t)
        assert torch.allclose(path[t - 1] - path[t], momentum_step) == (t <= 5)
