"""Parameters, gradients and state in every layout: what counts is the entries, not the strides."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import optimizers
from tests.optimizers.helpers import LAYOUTS, drive, problem
from tests.optimizers.table import ROWS

BY_ROW = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.rule)
BY_RULE = pytest.mark.parametrize("rule", optimizers.names())
SHAPE = (4, 3, 2, 2)
SPARSE = [rule for rule in optimizers.names() if optimizers.get_rule(rule).sparse]
BY_LAYOUT = pytest.mark.parametrize("layout", LAYOUTS)


def leaf(values):
    """The values' own memory as a parameter."""
    return values.requires_grad_()


def steps(opt, param, grads):
    for grad in grads:
        param.grad = grad
        opt.step()
    return param.detach().clone(memory_format=torch.contiguous_format)


@BY_ROW
@BY_LAYOUT
@pytest.mark.parametrize("chunk", [5, 2**17])
def test_parameters_of_any_layout(row, layout, chunk, monkeypatch):
    monkeypatch.setattr("optimizers.pieces.CHUNK", chunk)
    start, grads = problem(SHAPE, 4)
    settings = row.settings[-1]
    plain = leaf(start.clone())
    expected = steps(optimizers.create(row.rule, [plain], **settings), plain, grads)
    param = leaf(LAYOUTS[layout](start))
    strides = param.stride()
    for other in LAYOUTS:
        with torch.no_grad():
            param.copy_(start)
        opt = optimizers.create(row.rule, [param], **settings)
        actual = steps(opt, param, [LAYOUTS[other](grad) for grad in grads])
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-14)
        assert param.stride() == strides
    if layout == "sliced":
        assert (param._base[..., 1::2] == 7.0).all()


@BY_ROW
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0, 2)])
def test_parameters_without_entries_stop_nothing(row, shape):
    start, grads = problem((4, 3), 3)
    ends = []
    for extra in ([], [leaf(torch.zeros(shape))]):
        param = leaf(start.clone())
        opt = optimizers.create(row.rule, [param, *extra], clip_agc=0.1, **row.settings[-1])
        for grad in grads:
            for empty in extra:
                empty.grad = torch.zeros_like(empty)
            steps(opt, param, [grad])
        ends.append(param.detach())
    assert torch.equal(*ends)


@BY_RULE
@pytest.mark.parametrize(
    "arguments", [{}, {"clip_norm": 0.1}, {"low_precision": "stochastic"}], ids=str
)
def test_steps_on_the_meta_device_make_the_state_and_count(rule, arguments):
    states = []
    for device in ("cpu", "meta"):
        shapes = ((4, 3), (5,), (), (3, 2, 3, 3), (600, 500))
        params = [leaf(torch.ones(s, dtype=torch.bfloat16, device=device)) for s in shapes]
        opt = optimizers.create(rule, params, **arguments)
        for _ in range(2):
            for param in params:
                param.grad = torch.ones_like(param)
            opt.step()
        assert opt.skipped_steps == 0
        states.append([opt.state[param] for param in params])
    for real, meta in zip(*states, strict=True):
        assert meta["step"].item() == 2
        assert {key for key, value in meta.items() if not value.is_meta} == {"step"}
        kinds = [{key: (v.shape, v.dtype) for key, v in state.items()} for state in (real, meta)]
        assert kinds[0] == kinds[1]


@BY_RULE
def test_parameters_on_the_meta_device_change_nothing_for_others(rule):
    start, grads = problem((4, 3), 3)
    ends = []
    for extra in ([], [leaf(torch.empty(5, device="meta"))]):
        param = leaf(start.clone())
        opt = optimizers.create(rule, [param, *extra], clip_norm=0.1)
        for grad in grads:
            for absent in extra:
                absent.grad = torch.empty_like(absent)
            steps(opt, param, [grad])
        ends.append((opt.last_grad_norm, param.detach().tolist()))
    assert ends[0] == ends[1]


@BY_ROW
@BY_LAYOUT
def test_state_of_a_model_in_another_layout(row, layout):
    start, grads = problem(SHAPE, 6)
    settings = row.settings[-1]
    plain = leaf(start.clone())
    first = optimizers.create(row.rule, [plain], **settings)
    middle = steps(first, plain, grads[:3])
    saved = copy.deepcopy(first.state_dict())
    expected = steps(first, plain, grads[3:])
    param = leaf(LAYOUTS[layout](middle))
    second = optimizers.create(row.rule, [param], **settings)
    second.load_state_dict(saved)
    torch.testing.assert_close(steps(second, param, grads[3:]), expected, rtol=1e-12, atol=1e-14)


@BY_ROW
def test_model_changes_layout_during_training(row):
    start, grads = problem(SHAPE, 6)
    ends = []
    for changes in (False, True):
        param = torch.nn.Parameter(start.clone())
        opt = optimizers.create(row.rule, [param], **row.settings[-1])
        drive(opt, param, grads[:3])
        if changes:
            param.data = param.data.to(memory_format=torch.channels_last)
        ends.append(drive(opt, param, grads[3:])[-1])
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-12, atol=1e-14)


@BY_ROW
def test_mixed_dtypes_in_one_group(row):
    """bfloat16, float32 and float64 side by side take the same steps, each as well as it can."""
    dtypes = (torch.bfloat16, torch.float32, torch.float64)
    start, grads = problem((5, 3), 3)
    settings = row.settings[-1]
    together = [torch.nn.Parameter(start.to(dtype)) for dtype in dtypes]
    opt = optimizers.create(row.rule, together, clip_norm=0.5, **settings)
    for grad in grads:
        for param in together:
            param.grad = grad.to(param.dtype)
        opt.step()
    assert [param.dtype for param in together] == list(dtypes)
    spread = torch.stack([param.detach().double() for param in together])
    torch.testing.assert_close(spread[0], spread[2], rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(spread[1], spread[2], rtol=1e-4, atol=1e-5)


# Sparse gradients -----------------------------------------------------------------------------


def sparse_problem(rows=50, touched=6, steps=5):
    """An embedding, and gradients that name some of its rows, one of them twice."""
    source = torch.Generator().manual_seed(0)
    start = torch.randn(rows, 3, generator=source, dtype=torch.float64)
    grads = []
    for _ in range(steps):
        index = torch.randint(rows, (touched,), generator=source)
        index[1] = index[0]
        values = torch.randn(touched, 3, generator=source, dtype=torch.float64)
        grads.append(torch.sparse_coo_tensor(index[None], values, (rows, 3), check_invariants=True))
    return start, grads


@pytest.mark.parametrize("rule", SPARSE)
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"weight_decay": 0.1},
        {"clip_norm": 0.5},
        {"clip_value": 0.2},
        {"clip_per_layer": 0.3},
        {"clip_agc": 0.1},
        {"maximize": True},
        {"momentum": 0.9},
    ],
    ids=lambda arguments: "-".join(arguments) or "plain",
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex128])
def test_sparse_gradients_equal_dense_ones(rule, arguments, dtype):
    if arguments.keys() & {"clip_value", "clip_agc"} and dtype.is_complex:
        arguments = {}
    if "momentum" in arguments and "momentum" not in optimizers.get_rule(rule).hypers:
        arguments = {"lr": 0.5}
    start, grads = sparse_problem()
    ends = []
    for convert in (torch.Tensor.coalesce, torch.Tensor.to_dense):
        param = torch.nn.Parameter(start.to(dtype, copy=True))
        opt = optimizers.create(rule, [param], **arguments)
        ends.append(steps(opt, param, [convert(grad.to(dtype)) for grad in grads]))
    torch.testing.assert_close(ends[0], ends[1])
    assert not torch.equal(ends[0], start.to(dtype))


class Largest(TorchDispatchMode):
    """The number of entries of the largest tensor that an operation made."""

    def __init__(self):
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        inside = {id(a) for a in args}
        if isinstance(result, torch.Tensor) and id(result) not in inside and not result.is_sparse:
            self.entries = max(self.entries, result.untyped_storage().nbytes() // 8)
        return result


@pytest.mark.parametrize("rule", SPARSE)
def test_sparse_steps_need_memory_for_the_rows_alone(rule):
    start, grads = sparse_problem(rows=1000, touched=5)
    param = torch.nn.Parameter(start)
    opt = optimizers.create(rule, [param], clip_norm=1.0)
    steps(opt, param, grads[:1])
    param.grad = grads[1]
    with Largest() as seen:
        opt.step()
    assert 0 < seen.entries < 100


@pytest.mark.parametrize("rule", [name for name in optimizers.names() if name not in SPARSE])
def test_sparse_gradients_are_refused(rule):
    start, grads = sparse_problem()
    param = torch.nn.Parameter(start.clone())
    param.grad = grads[0]
    with pytest.raises(TypeError, match=r"does not support gradients of layout torch.sparse_coo"):
        optimizers.create(rule, [param]).step()
    assert torch.equal(param, start)


def test_sparse_gradients_that_are_not_finite():
    start, grads = sparse_problem()
    param = torch.nn.Parameter(start.clone())
    opt = optimizers.SGD([param])
    bad = grads[0].coalesce()
    bad.values()[0, 0] = float("nan")
    param.grad = bad
    opt.step()
    assert opt.skipped_steps == 1
    assert torch.equal(param, start)


@pytest.mark.parametrize("clip", [{}, {"clip_norm": 0.5}, {"clip_per_layer": 0.5}], ids=str)
@pytest.mark.parametrize("engine", ["eager", "compiled"])
@pytest.mark.parametrize("rule", ["adamw", "sophia"])
def test_a_conjugated_gradient_is_what_it_stands_for(rule, engine, clip):
    """As that of ``(param.conj() * x).real``: torch notes the conjugation and leaves it undone."""
    ends = []
    for resolved in (True, False):
        source = torch.Generator().manual_seed(4)
        param = leaf(torch.randn(6, generator=source, dtype=torch.complex128))
        opt = optimizers.create(rule, [param], engine=engine, lr=0.1, **clip)
        for _ in range(3):
            grad = torch.randn(6, generator=source, dtype=torch.complex128).conj()
            param.grad = grad.resolve_conj() if resolved else grad
            if rule == "sophia":
                opt.update_hessian()
            opt.step()
        ends.append(param.detach().clone())
    torch.testing.assert_close(*ends, rtol=1e-14, atol=1e-15)


def test_a_conjugated_gradient_has_a_norm():
    param = leaf(torch.ones(6, dtype=torch.complex128))
    param.grad = torch.full_like(param, 3 + 4j).detach().conj()
    norm = optimizers.clip_grad_norm_([param], 1.0)
    torch.testing.assert_close(float(norm), 5 * 6**0.5)
