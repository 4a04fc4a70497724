"""Every engine against the papers' formulas, in the situations where others went wrong."""

import copy

import pytest
import torch
from torch import nn

import optimizers
from optimizers import get_rule, precision
from tests.optimizers.helpers import LAYOUTS, drive, generator, problem
from tests.optimizers.table import ROWS
from tests.reference import relative_error, run

SHAPE = (4, 3, 2, 2)
BY_ROW = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.rule)
BY_ENGINE = pytest.mark.parametrize("engine", ["eager", "compiled"])
BY_NAME = {row.rule: row for row in ROWS}
OVER_MATRICES = ("soap",)  # no kernel: what they cost is matrix products
FACTORED = ("adafactor",)  # their kernels take contiguous matrices and vectors
CONTIGUOUS = ("adafactor", "muon")  # of their parameters kernels take no others

# What situations are tried with: one array of state and two, two passes, a number in the state, and
# a value per row and column.
SITUATIONS = pytest.mark.parametrize(
    ("rule", "settings"),
    [
        ("sgd", {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}),
        ("adamw", {"lr": 0.02, "weight_decay": 0.3, "eps": 1e-3}),
        ("lamb", {"lr": 0.02, "weight_decay": 0.3, "eps": 1e-3}),
        ("nadam", {"lr": 0.02}),
        ("adafactor", {"lr": 0.02, "weight_decay": 0.3}),
        ("muon", {"lr": 0.02, "weight_decay": 0.3, "ns_precision": "full"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)


def by_kernel(opt):
    """How many parameters a kernel stepped last."""
    return sum(len(table.params) for plan in opt._planner.known for table in plan.tables)


def expected(rule, start, grads, **settings):
    path = run(BY_NAME[rule].reference, start.numpy(), [g.numpy() for g in grads], **settings)
    return torch.from_numpy(path[-1])


def close(actual, wanted, error=1e-10):
    assert relative_error(actual.detach().double().numpy(), wanted.double().numpy()) < error


CASES = [
    pytest.param(row, settings, id=f"{row.rule}-{number}")
    for row in ROWS
    for number, settings in enumerate(row.settings)
]


@pytest.mark.parametrize(("row", "settings"), CASES)
def test_compiled_rules_agree_with_the_paper(row, settings):
    dims = (2,) if row.rule in FACTORED else (2, 3, 4)
    shape = next(shape for shape in reversed(row.shapes) if len(shape) in dims)
    start, grads = problem(shape, 12)
    param = nn.Parameter(start.clone())
    opt = optimizers.create(row.rule, [param], engine="compiled", **settings)
    path = drive(opt, param, grads)
    assert by_kernel(opt) == (row.rule not in OVER_MATRICES)
    wanted = run(row.reference, start.numpy(), [grad.numpy() for grad in grads], **settings)
    for actual, one in zip(path, wanted, strict=True):
        assert relative_error(actual.numpy(), one) < row.reference_error


EXACT = {"muon": {"ns_precision": "full"}}  # of large matrices the default is bfloat16


@BY_ROW
def test_engines_agree_in_single_precision(row):
    """Many blocks, a tail, a vector and a number, all with one gradient norm."""
    ends = []
    for engine in ("eager", "compiled"):
        source = generator("single")
        shapes = [(257, 131), (9,), ()]
        params = [nn.Parameter(torch.randn(shape, generator=source)) for shape in shapes]
        settings = {**row.settings[-1], **EXACT.get(row.rule, {})}
        opt = optimizers.create(row.rule, params, engine=engine, clip_norm=1.0, **settings)
        for _ in range(4):
            for param in params:
                param.grad = torch.randn(param.shape, generator=source)
            opt.step()
        ends.append([param.detach() for param in params])
    for eager, compiled in zip(*ends, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=2e-6, atol=2e-6)


CLIPS = ({"clip_norm": 0.5}, {"clip_value": 0.2}, {"clip_per_layer": 0.3}, {"clip_agc": 0.1})
ELSEWHERE = ({"maximize": True}, {"weight_decay_mode": "l2"}, {"weight_decay_mode": "independent"})


REAL = (torch.float64, torch.bfloat16, torch.float16)
SHELLS = [
    pytest.param(rule, settings, shell, dtype, id=f"{rule}-{next(iter(shell.values()))}-{dtype}")
    for rule, settings in SITUATIONS.args[1]
    for shell in (*CLIPS, *ELSEWHERE)
    for dtype in (*REAL, torch.complex128)
    if dtype in REAL or (get_rule(rule).scope == "element" and "clip_agc" not in shell)
]


@pytest.mark.parametrize(("rule", "settings", "shell", "dtype"), SHELLS)
def test_clipping_and_decay_in_the_same_pass(rule, settings, shell, dtype):
    ends = []
    for engine in ("eager", "compiled"):
        source = generator("same pass")
        shapes = [(40, 3, 2), (7,), (300, 129)]
        params = [
            nn.Parameter(torch.randn(shape, generator=source, dtype=torch.float64).to(dtype))
            for shape in shapes
        ]
        opt = optimizers.create(rule, params, engine=engine, **settings, **shell)
        for _ in range(3):
            for param in params:
                grad = torch.randn(param.shape, generator=source, dtype=torch.float64).to(dtype)
                param.grad = grad * (1 + 1j) if dtype.is_complex else grad
            before = [param.grad.clone() for param in params]
            opt.step()
            assert all(torch.equal(p.grad, b) for p, b in zip(params, before, strict=True))
        ends.append([(p.detach(), opt.state[p].get("compensation", 0)) for p in params])
    if rule == "muon":  # its kernels know no units, and no decay that the core would see
        left = 2 if "clip_agc" in shell or "l2" in shell.values() else 0
    else:
        left = 2 if rule in FACTORED and "clip_agc" in shell else 0
    assert by_kernel(opt) == 3 - left
    for (eager, lost), (compiled, gone) in zip(*ends, strict=True):
        if dtype in (torch.float16, torch.bfloat16):
            eager, compiled = precision.widen(eager, lost), precision.widen(compiled, gone)
        tolerance = 1e-6 if eager.dtype == torch.float32 else 1e-12
        torch.testing.assert_close(compiled, eager, rtol=tolerance, atol=tolerance)


# Memory -------------------------------------------------------------------------------------------


@SITUATIONS
@BY_ENGINE
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_may_differ(rule, settings, engine, layout):
    start, grads = problem((8, 7, 50, 60), 4)
    wanted = expected(rule, start, grads, **settings)
    for other in LAYOUTS:
        param = LAYOUTS[layout](start).requires_grad_()
        opt = optimizers.create(rule, [param], engine=engine, **settings)
        drive(opt, param, [LAYOUTS[other](grad) for grad in grads[:2]])
        saved = opt.state_dict()
        for state in saved["state"].values():  # a checkpoint of a model in another layout
            for key, value in state.items():
                if value.shape == param.shape:
                    opt.state[param][key] = LAYOUTS[other](value)
        drive(opt, param, [LAYOUTS[other](grad) for grad in grads[2:]])
        whole = rule not in CONTIGUOUS or (rule == "muon" and layout == other == "contiguous")
        assert by_kernel(opt) == (engine == "compiled" and whole)
        close(param, wanted)
        if layout == "sliced":
            assert (param._base[..., 1::2] == 7.0).all()


@SITUATIONS
@BY_ENGINE
def test_memory_around_a_slice_stays(rule, settings, engine):
    start, grads = problem((100, 50), 3)
    buffer, grad_buffer = torch.full((2, 7000), 3.0, dtype=torch.float64), torch.zeros(7000)
    param = buffer[1, 1000:6000].view(100, 50).copy_(start).requires_grad_()
    opt = optimizers.create(rule, [param], engine=engine, **settings)
    for grad in grads:
        param.grad = grad_buffer.double()[500:5500].view(100, 50).copy_(grad)
        opt.step()
    close(param, expected(rule, start, grads, **settings))
    outside = torch.cat([buffer[0], buffer[1, :1000], buffer[1, 6000:]])
    assert (outside == 3.0).all()


@BY_ENGINE
def test_parameters_without_entries(engine):
    start, grads = problem((5, 3), 3)
    param, empty = nn.Parameter(start.clone()), nn.Parameter(torch.zeros(0, 3))
    opt = optimizers.AdamW([param, empty], lr=0.02, weight_decay=0.3, engine=engine)
    empty.grad = torch.zeros(0, 3)
    drive(opt, param, grads)
    close(param, expected("adamw", start, grads, lr=0.02, weight_decay=0.3))


# Time ---------------------------------------------------------------------------------------------


@SITUATIONS
@BY_ENGINE
def test_a_gradient_that_first_comes_at_step_seven(rule, settings, engine):
    start, grads = problem(SHAPE, 12)
    early, late = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    opt = optimizers.create(rule, [early, late], engine=engine, **settings)
    for step, grad in enumerate(grads, start=1):
        early.grad, late.grad = grad.clone(), grad.clone() if step >= 7 else None
        opt.step()
    close(early, expected(rule, start, grads, **settings))
    close(late, expected(rule, start, grads[6:], **settings))


@SITUATIONS
@BY_ENGINE
def test_skipped_steps_leave_no_trace(rule, settings, engine):
    start, grads = problem(SHAPE, 6)
    param = nn.Parameter(start.clone())
    opt = optimizers.create(rule, [param], engine=engine, clip_norm=1e9, **settings)
    for number, grad in enumerate([grads[0] * float("nan"), *grads]):
        drive(opt, param, [grad * float("inf")] if number == 3 else [])
        before = copy.deepcopy(opt.state_dict()["state"])
        drive(opt, param, [grad])
        if number == 0:
            assert before == opt.state_dict()["state"] == {}
    assert opt.skipped_steps == 2
    close(param, expected(rule, start, grads, **settings))


@SITUATIONS
@BY_ENGINE
def test_groups_change_in_place(rule, settings, engine):
    """Numbers go to zero and come back; the reference changes with them."""
    start, grads = problem(SHAPE, 9)
    param = nn.Parameter(start.clone())
    opt = optimizers.create(rule, [param], engine=engine, **settings)
    group, formula, memory, p = opt.param_groups[0], BY_NAME[rule].reference, {}, start.numpy()
    for t, grad in enumerate(grads, start=1):
        now = dict(settings)
        if 3 <= t < 6:
            now["weight_decay"] = 0.0
        if t >= 5:
            now["lr"] = settings["lr"] / t
        if t >= 7 and rule in ("adamw", "lamb"):
            now |= {"beta1": 0.5, "beta2": 0.6}
        group.update(get_rule(rule).pack(now))
        p = formula(p, grad.numpy(), memory, t, **now)
        drive(opt, param, [grad])
    close(param, torch.from_numpy(p))


@BY_ENGINE
def test_momentum_leaves_zero(engine):
    start, grads = problem(SHAPE, 6)
    param = nn.Parameter(start.clone())
    opt = optimizers.SGD([param], lr=0.1, engine=engine)
    drive(opt, param, grads[:3])
    middle = param.detach().clone()
    opt.param_groups[0]["momentum"] = 0.9
    drive(opt, param, grads[3:])
    close(param, expected("sgd", middle, grads[3:], lr=0.1, momentum=0.9))


# Dtypes -------------------------------------------------------------------------------------------


@BY_ENGINE
def test_dtypes_side_by_side(engine):
    start, grads = problem((64, 33), 5)
    dtypes = {
        torch.float64: 1e-10, torch.float32: 1e-6, torch.bfloat16: 5e-3, torch.float16: 1e-3
    }  # fmt: skip
    params = [nn.Parameter(start.to(dtype, copy=True)) for dtype in dtypes]
    opt = optimizers.AdamW(params, lr=0.02, weight_decay=0.3, engine=engine)
    for grad in grads:
        for param in params:
            param.grad = grad.to(param.dtype)
        opt.step()
    assert [param.dtype for param in params] == list(dtypes)
    for param, error in zip(params, dtypes.values(), strict=True):
        rounded = [grad.to(param.dtype).double() for grad in grads]
        wanted = expected(
            "adamw", start.to(param.dtype).double(), rounded, lr=0.02, weight_decay=0.3
        )
        close(param, wanted, error)


@BY_ENGINE
def test_the_model_changes_its_dtype(engine):
    start, grads = problem((20, 30), 6)
    layer = nn.Linear(30, 20, bias=False)
    layer.weight.data.copy_(start)
    opt = optimizers.AdamW(layer.parameters(), lr=0.02, weight_decay=0.3, engine=engine)
    drive(opt, layer.weight, [grad.float() for grad in grads[:3]])
    layer.double()
    layer.weight.grad = None
    for key, value in opt.state[layer.weight].items():
        if key != "step":
            opt.state[layer.weight][key] = value.double()
    drive(opt, layer.weight, grads[3:])
    close(layer.weight, expected("adamw", start, grads, lr=0.02, weight_decay=0.3), 1e-6)


@BY_ENGINE
def test_sparse_and_dense_in_one_group(engine):
    table, layer = nn.Embedding(50, 4, sparse=True), nn.Linear(4, 3)
    twins = [copy.deepcopy(table), copy.deepcopy(layer)]
    twins[0].sparse = False
    for pair, kind in (((table, layer), engine), (twins, "eager")):
        params = [p for module in pair for p in module.parameters()]
        opt = optimizers.Adagrad(params, lr=0.1, clip_norm=0.5, engine=kind)
        for step in range(3):
            opt.zero_grad()
            pair[1](pair[0](torch.tensor([step, 7, 7]))).square().sum().backward()
            opt.step()
    for one, other in zip((table, layer), twins, strict=True):
        torch.testing.assert_close(one.weight, other.weight, rtol=1e-5, atol=1e-7)


@BY_ENGINE
@pytest.mark.parametrize(
    "shape",
    [
        *((8, 6, 1, 1), (64, 40, 3, 3), (3, 1, 2), (40, 3, 11, 11)),
        *((5, 4, 1), (7, 3, 3, 5, 2), (30, 4, 16, 16), (2, 32, 32)),
    ],
)
def test_adafactor_of_convolutions(engine, shape):
    """Matrices of one entry, of few and of many: each has its own factors."""
    start, grads = problem(shape, 6)
    grads = [grad.index_fill(0, torch.tensor([1]), 0.0) for grad in grads]  # no second moment
    settings = {"lr": 0.02, "weight_decay": 0.3}
    param = nn.Parameter(start.clone())
    opt = optimizers.Adafactor([param], engine=engine, **settings)
    drive(opt, param, grads)
    assert by_kernel(opt) == (engine == "compiled")
    close(param, expected("adafactor", start, grads, **settings))


@BY_ENGINE
def test_adafactor_of_stacks_too_large_for_a_block(engine):
    start, grads = problem((3, 33, 32), 4)
    param = nn.Parameter(start.clone())
    opt = optimizers.Adafactor([param], engine=engine, lr=0.02)
    drive(opt, param, grads)
    assert by_kernel(opt) == 0
    close(param, expected("adafactor", start, grads, lr=0.02))
