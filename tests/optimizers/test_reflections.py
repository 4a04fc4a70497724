"""Orthonormal rows by compiled reflections, and which runs of SOAP find its bases with them."""

import logging

import pytest
import torch
from torch import nn

import optimizers
from optimizers.kernels import build, policy
from optimizers.kernels.reflect import Reflections, reflect_by
from optimizers.parts import Room
from optimizers.rules import reflections
from tests.optimizers.helpers import drive, generator, problem
from tests.optimizers.test_engines import by_kernel, close, expected

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
BY = pytest.mark.parametrize("by", ["compiled", "lapack"])
ERROR = {torch.float32: 1e-5, torch.float64: 1e-13}


def orthonormalized(rows, by, size=None, entries=None):
    """What becomes of rows in a room whose vectors have so many entries."""
    reflect = reflect_by([Reflections(rows.dtype)]) if by == "compiled" else None
    room = Room(*rows.new_empty(2, entries or rows.numel()), reflect)
    result = rows.clone()
    reflections.orthonormalize_(result, size or len(rows), room)
    return result


def random(size, dtype):
    return torch.randn(size, size, dtype=torch.float64, generator=generator(size)).to(dtype)


def is_orthonormal(rows):
    eye = torch.eye(len(rows), dtype=rows.dtype)
    return (rows @ rows.mT - eye).abs().max() < ERROR[rows.dtype]


@BY
@DTYPES
@pytest.mark.parametrize(
    ("rows", "size", "entries"),
    [(1, 1, 1), (5, 5, 5), (5, 2, 25), (128, 128, 128), (129, 129, 20_000), (300, 300, 600),
     (300, 300, 60_000), (300, 100, 300), (300, 130, 60_000), (301, 257, 10_000)],
)  # fmt: skip
def test_each_row_is_in_the_span_of_those_up_to_it(rows, size, entries, dtype, by):
    """However many rows are given, and however little room there is."""
    matrix = random(rows, dtype)
    result = orthonormalized(matrix, by, size, entries)
    assert is_orthonormal(result)
    products = matrix[:size] @ result.mT
    assert products.triu(1).abs().max() < ERROR[dtype] * products.abs().max()
    wanted = torch.linalg.qr(matrix[:size].double().mT).Q.mT
    signs = (wanted * result[:size]).sum(1).sign()[:, None]
    torch.testing.assert_close(
        result[:size].double(), wanted * signs, rtol=0, atol=3e3 * ERROR[dtype]
    )


@BY
@DTYPES
@pytest.mark.parametrize("kind", ["zero", "equal", "zero row", "zero column", "identity", "one"])
def test_rows_that_depend_on_each_other(kind, dtype, by):
    matrix = {
        "zero": torch.zeros(140, 140, dtype=dtype),
        "equal": random(140, dtype)[:1].repeat(140, 1),
        "zero row": random(140, dtype).index_fill(0, torch.tensor([0, 70, 139]), 0),
        "zero column": random(140, dtype).index_fill(1, torch.tensor([0, 70, 139]), 0),
        "identity": torch.eye(140, dtype=dtype),
        "one": torch.ones(140, 140, dtype=dtype).triu(),
    }[kind]
    result = orthonormalized(matrix, by)
    assert is_orthonormal(result)
    products = matrix @ result.mT
    assert products.triu(1).abs().max() <= ERROR[dtype] * products.abs().max()


@BY
@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        (torch.float32, 1e-30),
        (torch.float32, 1e30),
        (torch.float64, 1e-250),
        (torch.float64, 1e250),
    ],
    ids=str,
)
def test_squares_that_no_number_holds(dtype, scale, by):
    """The bases of gradients so small, or so large, are those of others."""
    rows = random(140, dtype)
    scaled = orthonormalized(rows * scale, by)
    close(scaled, orthonormalized(rows, by), 1e-2)
    assert is_orthonormal(scaled)


@DTYPES
def test_columns_that_lie_together_are_not_given_to_compiled_code(dtype):
    matrix = random(140, dtype)
    turned = matrix.mT.contiguous().mT
    close(orthonormalized(turned, "compiled"), orthonormalized(matrix, "compiled"), 1e-2)


@DTYPES
def test_the_number_of_threads_changes_no_bit(dtype):
    function, results = Reflections(dtype).function(), []
    for threads in (1, 2, 3):
        rows, inverses = random(90, dtype)[:70].clone(), torch.empty(70, dtype=dtype)
        function(rows.data_ptr(), 90, 70, 90, inverses.data_ptr(), threads)
        results.append(torch.cat([rows.flatten(), inverses]))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


# Which runs do it ---------------------------------------------------------------------------------


def soap(shape, grads, engine, dtype=torch.float64, **settings):
    param = nn.Parameter(grads[0].new_zeros(shape, dtype=dtype))
    settings = {"lr": 0.01, "precondition_frequency": 2, **settings}
    opt = optimizers.create("soap", [param], engine=engine, **settings)
    drive(opt, param, [grad.to(dtype) for grad in grads])
    return opt, param.detach()


def reflects(opt):
    return opt._planner.known[0].reflect is not None


@pytest.mark.parametrize("shape", [(160, 140), (140, 30), (30, 4, 35)])
def test_engines_find_the_same_bases(shape):
    """Of several blocks, and first ones that few reflections complete.

    They are refreshed when enough gradients have come that nothing is left to choose.
    """
    _, grads = problem(shape, 9)
    (ours, end), (eager, wanted) = (
        soap(shape, grads, engine, precondition_frequency=6) for engine in ("compiled", "eager")
    )
    assert reflects(ours)
    assert not reflects(eager)
    close(end, wanted, 1e-8)
    (own,), (others,) = (opt.state.values() for opt in (ours, eager))
    for name in (name for name in own if name.startswith("basis")):
        assert is_orthonormal(own[name])
        close(own[name], others[name], 1e-6)


def test_both_precisions_in_one_group():
    _, grads = problem((6, 5), 7)
    params = [nn.Parameter(torch.zeros(6, 5, dtype=dtype)) for dtype in ERROR]
    opt = optimizers.create("soap", params, engine="compiled", precondition_frequency=2, lr=0.01)
    for grad in grads:
        for param in params:
            param.grad = grad.to(param.dtype)
        opt.step()
    assert reflects(opt)
    torch.testing.assert_close(params[0].double(), params[1], rtol=1e-3, atol=1e-4)


def test_vectors_have_a_kernel():
    start, grads = problem((7,), 12)
    param = nn.Parameter(start.clone())
    opt = optimizers.create("soap", [param], engine="compiled", lr=0.02)
    drive(opt, param, grads)
    assert by_kernel(opt) == 1
    close(param, expected("soap", start, grads, lr=0.02))


def test_without_a_compiler_lapack_does_it(cache, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "/nowhere/g++")
    monkeypatch.setattr(build, "_told", set())
    _, grads = problem((6, 5), 5)
    with caplog.at_level(logging.WARNING, "optimizers"):
        opt, end = soap((6, 5), grads, "compiled")
    assert not reflects(opt)
    assert caplog.text.count("without compiled kernels") == 1
    assert torch.equal(end, soap((6, 5), grads, "eager")[1])


def test_auto_compiles_where_bases_are_worth_it(cache, compilations):
    _, grads = problem((6, 5), 3)
    opt, _ = soap((6, 5), grads, "auto")
    assert not reflects(opt)
    assert opt.param_groups[0]["engine"] == "eager"
    assert not reflects(soap((6, 5), grads, "fused")[0])
    assert not compilations
    opt, _ = soap((6, 5), grads, "auto", total_steps=10**12)
    assert reflects(opt)
    assert opt.param_groups[0]["engine"] == "compiled"
    assert len(compilations) == 1
    assert reflects(soap((6, 5), grads, "fused")[0]), "it is there now"


def test_large_bases_pay():
    assert policy.pays(1, policy.saving([], [1536] * 24), None)
    assert not policy.pays(1, policy.saving([], [64] * 24), None)
