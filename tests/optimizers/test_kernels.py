"""Kernels: which rules and parameters get one, and what it computes."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import optimizers
from optimizers import core, get_rule
from optimizers.kernels import trace
from optimizers.optimizer import make_class
from tests.optimizers.helpers import drive
from tests.optimizers.test_engines import by_kernel

LION = get_rule("lion")


def other(rule, suffix, update, **changes):
    """A rule of its own, which no cache knows yet; the constant makes its text differ."""
    return make_class(replace(rule, name=f"{rule.name}_{suffix}", update=update, **changes))


def step(kind, engine="compiled", **settings):
    param = nn.Parameter(torch.ones(5, dtype=torch.float64))
    opt = kind([param], engine=engine, **settings)
    drive(opt, param, [torch.arange(5.0, dtype=torch.float64)] * 3)
    return opt, param.detach()


# Who gets a kernel --------------------------------------------------------------------------------


def branching(grad, param, state, hyper, t):
    """Looks at a number."""
    factor = 2.0 if t > 2 else 1.0
    return grad * factor, state


def sized(grad, param, state, hyper, t):
    """Makes something of the size of the parameter."""
    return grad / grad.numel() ** 2, state


def sorting(grad, param, state, hyper, t):
    """Lets entries see each other."""
    return grad.sort().values, state


@pytest.mark.parametrize("update", [branching, sized, sorting])
def test_rules_that_do_not_fit_run_eagerly(update):
    kind = other(get_rule("sgd"), update.__name__, update)
    opt, end = step(kind)
    assert by_kernel(opt) == 0
    assert torch.equal(end, step(kind, "eager")[1])


def nonsense(grad, param, state, hyper, t):
    """Whatever C++ can say: choices, bounds, roots, signs, also of what is not a number."""
    x = torch.where(grad > 1, grad.abs().sqrt(), -grad)
    y = torch.maximum(x.clamp(-0.5, 2.0), torch.minimum(param, grad)) + torch.lerp(x, grad, 0.25)
    z = torch.addcdiv(y, grad, param + 3, value=0.5) + torch.addcmul(x, y, grad, value=-2.0)
    root = (hyper.lr * t).sqrt() if isinstance(t, torch.Tensor) else (hyper.lr * t) ** 0.5
    far = torch.where((grad != 2) & ~(grad < 1) | (x == 1), z.sign(), (z.square() + 1).rsqrt())
    return far * root + x**2 + y**3 + (x / 0.5).clamp(max=4.0), state


def test_what_a_rule_may_say():
    kind = other(get_rule("sgd"), "nonsense", nonsense)
    opt, end = step(kind)
    assert by_kernel(opt) == 1
    torch.testing.assert_close(end, step(kind, "eager")[1], rtol=1e-12, atol=0, equal_nan=True)


@pytest.mark.parametrize("skip_nonfinite", [True, False])
@pytest.mark.parametrize("kind", [optimizers.AMSGrad, optimizers.ADOPT])
def test_gradients_that_are_not_numbers(kind, skip_nonfinite):
    """Larger entries of two tensors, and entries within bounds."""
    ends = []
    for engine in ("eager", "compiled"):
        param = nn.Parameter(torch.ones(4))
        opt = kind([param], engine=engine, clip_value=0.5, skip_nonfinite=skip_nonfinite)
        bad = torch.tensor([1.0, float("nan"), float("inf"), -float("inf")])
        drive(opt, param, [torch.ones(4), bad, torch.ones(4)])
        assert opt.skipped_steps == skip_nonfinite
        ends.append(param.detach())
    torch.testing.assert_close(*ends, equal_nan=True)


def centered(grad, param, state, hyper, t):
    """Means per row, per column and of everything, and the largest of norms."""
    rows = grad.sum(dim=-1, keepdim=True) / grad.shape[-1]
    columns = grad.sum(dim=-2, keepdim=True) / grad.shape[-2]
    far = torch.linalg.vector_norm(grad - rows, dim=-2, keepdim=True) * rows.sum(-2, keepdim=True)
    return (grad - rows - columns) / (1 + far + far.norm() / grad.numel()), state


def within(grad, param, state, hyper, t):
    """As `centered` in each matrix of a stack, and a norm of everything."""
    rows = grad.sum(dim=-1, keepdim=True) / grad.shape[-1]
    columns = grad.sum(dim=-2, keepdim=True) / grad.shape[-2]
    far = torch.linalg.vector_norm(grad - rows, dim=-2, keepdim=True)
    size = torch.linalg.vector_norm(rows, dim=-2, keepdim=True) + columns.sum(-1, keepdim=True)
    new = (grad - rows - columns) / (1 + far * far + size * size)
    return new * (1 + new.norm() / grad.numel()), state


MATRICES = ((1, 1), (1, 7), (7, 1), (5, 4), (300, 1), (1, 300), (70, 40))
STACKS = ((1, 1, 7), (3, 7, 1), (600, 5, 4, 3), (9, 32, 32))


@pytest.mark.parametrize(
    ("update", "shape"),
    [(centered, shape) for shape in MATRICES] + [(within, shape) for shape in STACKS],
)
def test_rows_columns_and_sizes(update, shape):
    kind, ends = other(get_rule("sgd"), update.__name__, update, scope="tensor"), []
    for engine in ("eager", "compiled"):
        param = nn.Parameter(torch.ones(shape, dtype=torch.float64))
        opt = kind([param], engine=engine, clip_norm=1.0)
        source = torch.Generator().manual_seed(1)
        grads = [torch.randn(shape, dtype=torch.float64, generator=source) + 3 for _ in range(3)]
        drive(opt, param, grads)
        ends.append(param.detach())
    assert by_kernel(opt) == 1
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-9)


def test_sums_over_all_matrices_of_a_stack_have_no_kernel():
    kind = other(get_rule("sgd"), "centered", centered, scope="tensor")
    param = nn.Parameter(torch.ones(3, 4, 5))
    opt = kind([param], engine="compiled")
    drive(opt, param, [torch.ones(3, 4, 5)])
    assert by_kernel(opt) == 0


def test_large_matrices_depend_on_no_number_of_threads():
    """More than a few slabs are shared among threads, fewer are one thread's."""
    shapes = ((1201, 1100), (600, 500), (3, 100_000), (200_000, 3), (40, 30), (90, 70, 3, 3))
    ends = []
    before = torch.get_num_threads()
    for engine, threads in (("eager", 2), ("compiled", 1), ("compiled", 2)):
        torch.set_num_threads(threads)
        source = torch.Generator().manual_seed(2)
        params = [nn.Parameter(torch.randn(shape, generator=source)) for shape in shapes]
        opt = optimizers.Adafactor(params, engine=engine, clip_norm=1.0, weight_decay=0.1)
        for _ in range(2):
            for param in params:
                param.grad = torch.randn(param.shape, generator=source)
            opt.step()
        ends.append([param.detach() for param in params])
    torch.set_num_threads(before)
    assert by_kernel(opt) == len(shapes)
    for eager, one, two in zip(*ends, strict=True):
        assert torch.equal(one, two)
        torch.testing.assert_close(one, eager, rtol=1e-5, atol=1e-6)


# Graphs -------------------------------------------------------------------------------------------


def test_a_trace_says_what_is_per_parameter_and_what_per_entry():
    rule = get_rule("lamb")
    values = core.Values(**vars(rule.values()), schedule=1.0)
    state = rule.state(torch.zeros(3, 2), values)
    layout = trace.Layout.of(rule, values, torch.float32, state, (2, 2))
    graph = trace.step_graph(rule, "inside", layout, values)
    assert graph.passes == 2
    assert set(graph.outputs) == {"param", "exp_avg", "exp_avg_sq"}
    powers = [node for node in graph.walk() if node.op == "pow"]
    assert powers
    assert not any(node.entry for node in powers)
    assert sum(node.reduction for node in graph.walk()) == 2
