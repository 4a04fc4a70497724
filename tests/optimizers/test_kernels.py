"""Kernels: who gets one, when they are compiled, where they are kept, and what happens without."""

import logging
from dataclasses import replace

import pytest
import torch
from torch import nn

import optimizers
from optimizers import core, get_rule
from optimizers.kernels import build, policy, trace
from optimizers.optimizer import make_class
from tests.optimizers.helpers import drive, problem
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


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, as on a new machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "_loaded", {})
    return tmp_path / "optimizer-tuner" / "kernels"


@pytest.fixture
def compilations(monkeypatch):
    """The libraries that were compiled."""
    done, real = [], build.compile_to
    monkeypatch.setattr(build, "compile_to", lambda *args: (done.append(args[0]), real(*args)))
    return done


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
def test_gradients_that_are_not_numbers(skip_nonfinite):
    ends = []
    for engine in ("eager", "compiled"):
        param = nn.Parameter(torch.ones(4))
        opt = optimizers.AMSGrad(
            [param], engine=engine, clip_value=0.5, skip_nonfinite=skip_nonfinite
        )
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


# When they are compiled ---------------------------------------------------------------------------


def test_ten_models_and_a_hundred_learning_rates_need_one_kernel(cache, compilations):
    for width in range(1, 11):
        layers = [nn.Linear(width, 3), nn.LayerNorm(3), nn.Conv2d(1, width, 2)]
        params = [param for layer in layers for param in layer.parameters()]
        decaying = {"params": params[:2], "weight_decay": 0.1}
        opt = optimizers.AdamW([decaying, {"params": params[2:], "weight_decay": 0.0}])
        opt.engine = "compiled"
        opt.load_state_dict(opt.state_dict())
        for number in range(10):
            opt.param_groups[0]["lr"] = 10.0 ** -(number + width / 10)
            opt.param_groups[1]["betas"] = (0.5 + number / 100, 0.9)
            for param in params:
                param.grad = torch.ones_like(param)
            opt.step()
        assert by_kernel(opt) == len(params)
    assert len(compilations) == 1
    assert sorted(cache.iterdir()) == [compilations[0]]


def test_a_warm_cache_compiles_nothing(cache, compilations, monkeypatch):
    first = step(optimizers.Lion)[1]
    monkeypatch.setattr(build, "_loaded", {})  # as in a new process
    assert torch.equal(step(optimizers.Lion)[1], first)
    assert len(compilations) == 1


def test_fused_takes_only_what_is_there(cache, compilations):
    opt, end = step(optimizers.Lion, "fused")
    assert by_kernel(opt) == len(compilations) == 0
    step(optimizers.Lion, "compiled")
    opt, again = step(optimizers.Lion, "fused")
    assert by_kernel(opt) == len(compilations) == 1
    torch.testing.assert_close(end, again, rtol=1e-12, atol=0)


def test_auto_compiles_where_it_pays(cache, compilations):
    opt, _ = step(optimizers.Lion, "auto")
    assert by_kernel(opt) == len(compilations) == 0
    assert opt.param_groups[0]["engine"] == "eager"
    opt, _ = step(optimizers.Lion, "auto", total_steps=1_000_000)
    assert by_kernel(opt) == len(compilations) == 1
    assert opt.param_groups[0]["engine"] == "compiled"
    opt, _ = step(optimizers.Lion, "auto")
    assert by_kernel(opt) == 1, "it is there now"


def test_auto_goes_on_as_it_began(cache):
    """A kernel that appears during a run, or between a run and its resumption, changes no bit."""
    start, grads = problem((50, 7), 6)
    ends = []
    for interrupted in (False, True):
        param = nn.Parameter(start.clone())
        opt = optimizers.AdamW([param], lr=0.1)
        drive(opt, param, grads[:3])
        if interrupted:
            step(optimizers.AdamW)  # somebody compiles it
            saved = opt.state_dict()
            opt = optimizers.AdamW([param], lr=0.1)
            opt.load_state_dict(saved)
        drive(opt, param, grads[3:])
        assert by_kernel(opt) == 0
        ends.append(param.detach())
    assert torch.equal(*ends)
    fresh = optimizers.AdamW([param], lr=0.1)
    drive(fresh, param, grads[:1])
    assert by_kernel(fresh) == 1


@pytest.mark.parametrize(
    ("entries", "tensors", "steps", "worth"),
    [(1000, 1, 100, False), (10**8, 1, None, True), (1000, 1, 10**6, True), (10**8, 1, 1, False)],
)
def test_when_compiling_pays(entries, tensors, steps, worth):
    params = [torch.empty(entries // tensors, device="meta")] * tensors
    assert policy.pays([None], params, steps) == worth


# Where they are kept ------------------------------------------------------------------------------


def test_the_cache_is_private(cache):
    step(optimizers.Lion)
    files = list(cache.iterdir())
    assert len(files) == 1
    assert all(path.stat().st_mode & 0o077 == 0 for path in [cache, *files])


def test_a_folder_that_others_can_write_to_is_not_used(cache, caplog, monkeypatch):
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    monkeypatch.setattr(build, "_told", set())
    opt, _ = step(optimizers.Lion)
    assert by_kernel(opt) == 1
    assert not list(cache.iterdir())
    assert "is not private to this user" in caplog.text


def test_a_library_that_others_can_write_to_is_not_loaded(cache, monkeypatch):
    step(optimizers.Lion)
    next(cache.iterdir()).chmod(0o777)
    monkeypatch.setattr(build, "_loaded", {})
    assert by_kernel(step(optimizers.Lion)[0]) == 0


@pytest.mark.parametrize(
    "broken", [lambda whole: b"no library", lambda whole: whole[: len(whole) // 2], lambda _: b""]
)
def test_a_broken_library_is_built_again(broken, cache, monkeypatch, tmp_path):
    step(optimizers.Lion)
    [library] = cache.iterdir()
    # in another folder: of a path that is loaded already, the loader does not read the file again
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    path = build.cache() / library.name
    path.write_bytes(broken(library.read_bytes()))
    path.chmod(0o700)
    monkeypatch.setattr(build, "_loaded", {})
    assert by_kernel(step(optimizers.Lion)[0]) == 1
    assert path.read_bytes() == library.read_bytes()


# Without a compiler -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("no-such-compiler", "there is no C++ compiler"),
        ("g++ 'unfinished", "there is no C++ compiler"),
        ("false", "failed"),
    ],
)
def test_without_a_compiler_it_says_so_once(command, why, cache, monkeypatch, caplog):
    monkeypatch.setenv("CXX", command)
    monkeypatch.setattr(build, "_told", set())
    with caplog.at_level(logging.WARNING, "optimizers"):
        opt, end = step(optimizers.Lion)
        step(optimizers.Lion)
        step(optimizers.Lion, "auto")
    assert torch.equal(end, step(optimizers.Lion, "eager")[1])
    assert by_kernel(opt) == 0
    assert len(caplog.messages) == 1
    assert caplog.records[0].levelname == "WARNING"
    assert why in caplog.text


@pytest.mark.parametrize(
    ("owner", "call"), [(build.Path, "write_text"), (build.os, "replace")], ids=["text", "library"]
)
def test_a_disk_that_is_full_stops_no_training(owner, call, cache, monkeypatch, caplog):
    real = getattr(owner, call)

    def full(place, *args, **kwargs):
        if "kernel." in str(place):
            raise OSError(28, "No space left on device")
        return real(place, *args, **kwargs)

    monkeypatch.setattr(owner, call, full)
    monkeypatch.setattr(build, "_told", set())
    opt, end = step(optimizers.Lion)
    assert by_kernel(opt) == 0
    assert torch.equal(end, step(optimizers.Lion, "eager")[1])
    assert "No space left on device" in caplog.text


def test_libraries_outlive_the_compiler(cache, monkeypatch, compilations):
    """An image can be built with one and run without."""
    step(optimizers.Lion)
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(build, "_loaded", {})
    assert by_kernel(step(optimizers.Lion, "fused")[0]) == 1
    assert len(compilations) == 1


def test_a_compiler_that_knows_little_will_do(cache, monkeypatch, tmp_path):
    """Neither OpenMP nor the machine's own instructions are needed."""
    real = build.compiler()[0]
    poor = tmp_path / "poor"
    poor.write_text(
        '#!/bin/sh\ncase "$*" in *-fopenmp*|*-march*) echo error: unknown >&2; exit 1;; esac\n'
        f'exec {real} "$@"\n'
    )
    poor.chmod(0o755)
    monkeypatch.setenv("CXX", str(poor))
    opt, end = step(optimizers.Lion)
    assert by_kernel(opt) == 1
    monkeypatch.delenv("CXX")
    assert torch.equal(end, step(optimizers.Lion)[1])


@pytest.mark.parametrize("seen", ["AVX2", "DEFAULT"])
def test_what_the_process_does_not_see_of_the_machine_is_not_used(seen, cache, monkeypatch):
    """An emulated CPU (valgrind) knows less than the compiler, which runs beside it."""
    native = build.flags()
    _, end = step(optimizers.Lion)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: seen)
    monkeypatch.setattr(build, "_loaded", {})
    opt, same = step(optimizers.Lion)
    assert by_kernel(opt) == 1
    assert torch.equal(end, same)
    kernels = [path.read_bytes() for path in cache.glob("**/*.so")]
    assert len({*kernels}) == (2 if native != build.flags() else 1)


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


def test_links_are_not_followed(tmp_path):
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("real")
    assert build.private(tmp_path / "real")
    assert not build.private(tmp_path / "link")
