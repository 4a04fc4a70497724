"""Stacks of small parameters and blocks of rows: the same steps as one parameter at a time."""

from dataclasses import replace
from functools import partial
from math import inf, nan

import pytest
import torch
from torch import nn

import optimizers
from optimizers import around, engines, stacks
from optimizers.eager import program
from optimizers.pieces import LEAST
from optimizers.rules import adafactor, muon
from optimizers.sharding import are_plain
from tests.optimizers.helpers import generator

SHAPES = ((6,), (6,), (4, 3), (4, 3), (4, 3), (6,), (2, 3, 2, 2), (2, 3, 2, 2), ())
STEPS = 4


def run(rule, shapes, together, dtype=torch.float64, steps=STEPS, late=(), **arguments):
    """Parameters after some steps, in one optimizer or in one each; some begin a step later."""
    source = generator("pieces", len(shapes))
    params = [
        nn.Parameter(torch.randn(shape, generator=source, dtype=torch.float64).to(dtype))
        for shape in shapes
    ]
    owners = [params] if together else [[param] for param in params]
    opts = [optimizers.create(rule, own, engine="eager", **arguments) for own in owners]
    for step in range(steps):
        for index, param in enumerate(params):
            grad = torch.randn(param.shape, generator=source, dtype=torch.float64).to(dtype)
            param.grad = None if step == 0 and index in late else grad
        for opt in opts:
            opt.step()
    return [param.detach() for param in params]


# prodigy's sums are over all parameters of an optimizer, so that one alone is something else
@pytest.mark.parametrize("rule", [name for name in optimizers.names() if name != "prodigy"])
def test_a_stack_steps_as_its_parameters_do_alone(rule):
    arguments = {"late": (1, 3)}
    apart = run(rule, SHAPES, False, **arguments)
    for alone, stacked in zip(apart, run(rule, SHAPES, True, **arguments), strict=True):
        torch.testing.assert_close(stacked, alone, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rule", ["sgd", "adamw", "lion", "nadam", "adopt", "schedulefree_sgd"])
def test_a_stack_of_many_entries_is_stepped_by_a_program(rule):
    shapes, arguments = ((30, 20),) * 60, {"clip_value": 1.0, "late": (7,)}
    assert LEAST < 60 * 30 * 20
    apart = run(rule, shapes, False, **arguments)
    for alone, stacked in zip(apart, run(rule, shapes, True, **arguments), strict=True):
        torch.testing.assert_close(stacked, alone, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rule", ["sgd", "adamw", "lion", "adan"])
def test_small_ones_take_the_program_of_a_large_one(rule, monkeypatch):
    """If there is one of as many dimensions, and only then: what others do changes no bit."""
    ran, real = [], program.Program.run
    monkeypatch.setattr(
        program.Program, "run", lambda *args: (ran.append(args[1][0][0].numel()), real(*args))[1]
    )
    for shapes, programs in (
        (((200, 170), *[(6,)] * 4, (7, 5)), [200 * 170, 7 * 5, 4 * 6]),
        ((*[(6,)] * 4, (7, 5)), []),
        (((200 * 170,), (7, 5)), [200 * 170]),
    ):
        ran.clear()
        found = run(rule, shapes, True, steps=1)
        assert ran == programs
        for alone, stacked in zip(run(rule, shapes, False, steps=1), found, strict=True):
            torch.testing.assert_close(stacked, alone, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rule", ["adamw", "soap"])
def test_half_precision_is_compensated_in_a_stack(rule):
    shapes, arguments = ((5,),) * 4, {"dtype": torch.bfloat16, "steps": 40, "lr": 1e-4}
    apart = run(rule, shapes, False, **arguments)
    for alone, stacked in zip(apart, run(rule, shapes, True, **arguments), strict=True):
        assert torch.equal(stacked, alone)


def test_memory_is_lent_as_far_as_it_goes():
    memory, vector = program.Memory(), torch.zeros(10)
    memory.lend(vector)
    first, second = memory.take("buffers", 2, vector, 4)
    (third,) = memory.take("kept", 1, vector, 4)
    (other,) = memory.take("kept", 1, vector.double(), 2)
    first.fill_(1)
    second.fill_(2)
    third.fill_(3)
    other.fill_(4)
    assert vector.tolist() == [1] * 4 + [2] * 4 + [0] * 2
    memory.lend(torch.zeros(100))
    assert memory.take("buffers", 2, vector, 4)[0].data_ptr() == vector.data_ptr()


def test_stacks_hold_what_is_alike_and_fits(monkeypatch):
    monkeypatch.setattr(stacks, "MOST", 10)
    seen = []
    gather = engines.gather
    monkeypatch.setattr(
        engines, "gather", lambda batch, own: (seen.append(len(own)), gather(batch, own))[1]
    )
    run("adamw", ((3,),) * 5 + ((3, 1),) * 2 + ((6,),) * 2, True, steps=1)
    assert seen == [3, 2, 2]  # three of three entries; a vector of six is half of all there may be


def test_a_stack_is_written_back_into_any_layout_and_dtype():
    stacked = torch.arange(12.0).reshape(2, 2, 3)
    into = [torch.zeros(2, 3), torch.zeros(3, 2).mT]
    stacks.spread(stacked, into)
    assert torch.equal(torch.stack(into), stacked)
    assert into[1].stride() == (1, 2)
    into = [torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.float64)]
    stacks.spread(stacked, into)
    assert torch.equal(torch.stack([each.float() for each in into]), stacked)


@pytest.mark.parametrize(
    ("tensor", "answer"),
    [
        (torch.ones(2), True),
        (torch.nn.Parameter(torch.ones(2)), True),
        (torch.ones(2, dtype=torch.complex64), False),
        (torch.ones(2, dtype=torch.complex64).conj(), False),
        (torch.ones(2, 2).to_sparse(), False),
        (torch.ones(2).as_subclass(type("Own", (torch.Tensor,), {})), False),
    ],
)
def test_what_has_to_be_looked_at_one_by_one(tensor, answer):
    assert are_plain([torch.ones(3), tensor]) is answer


BLOCKED = ((23, 5), (4, 3, 2, 2), (9, 10, 7), (30, 1, 1), (101,))


def cut_small(monkeypatch):
    """Blocks of 20 entries; returns the shapes that will be cut."""
    monkeypatch.setattr(around, "ROWS", 20)
    monkeypatch.setattr(around, "chunk", lambda: 20)
    seen = set()
    slices_of = around.slices_of
    monkeypatch.setattr(
        around,
        "slices_of",
        lambda piece, *cut: (seen.add(tuple(piece.param.shape)), slices_of(piece, *cut))[1],
    )
    return seen


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "arguments",
    [
        {"weight_decay_mode": "l2", "clip_norm": 2.0},
        {"weight_decay_mode": "decoupled", "clip_norm": 2.0},
        {"clip_value": 0.5, "maximize": True},
        {"clip_agc": 0.01, "eps": (0.4, 1e-3)},
        {"eps": (0.4, 1e-3)},  # a bound on some entries
        {"eps": (1e-30, 1e-3)},
    ],
)
def test_adafactor_in_blocks_of_rows(monkeypatch, dtype, arguments):
    arguments = {"dtype": dtype, "weight_decay": 0.1, "lr": 0.3, **arguments}
    shapes = (*BLOCKED, (7,))
    whole = run("adafactor", shapes, True, **arguments)
    seen = cut_small(monkeypatch)
    cut = run("adafactor", shapes, True, **arguments)
    assert seen == (set() if "clip_agc" in arguments else set(BLOCKED))
    for first, second in zip(whole, cut, strict=True):
        error = 1e-12 if dtype == torch.float64 else 1e-2
        torch.testing.assert_close(second, first, rtol=error, atol=error)


@pytest.mark.parametrize("kind", ["ordinary", "zeros", "tiny", "bounded", "nan", "infinite"])
def test_adafactors_shortcut_is_taken_where_it_is_exact(monkeypatch, kind):
    """Sums over columns stand for a pass over all entries, unless eps1 bounds one of them."""
    source = generator("shortcut")
    start = torch.randn(20, 6, generator=source, dtype=torch.float64)
    grads = [torch.randn(20, 6, generator=source, dtype=torch.float64) for _ in range(3)]
    for grad in grads:
        grad[:, 2] = 0.0
        grad[5] = {"tiny": 1e-25, "nan": nan, "infinite": inf}.get(kind, 0.0)
    if kind == "zeros":  # a row that had gradients, and one that has none any more
        grads[0][5], grads[2][9] = 1.0, 0.0
    arguments = {
        "eps": (1.0 if kind == "bounded" else None, 1e-3),
        "skip_nonfinite": False,
        "lr": 0.1,
    }
    passes = []

    def steps():
        param = nn.Parameter(start.clone())
        opt = optimizers.Adafactor([param], engine="eager", **arguments)
        for grad in grads:
            param.grad = grad
            opt.step()
        return param.detach()

    length = adafactor.length
    by_length = replace(
        adafactor.BLOCKS,
        passes=(adafactor.factors, lambda *args: (passes.append(1), length(*args))[1]),
    )
    monkeypatch.setattr(
        engines, "in_blocks", lambda batch, blocks: around.in_blocks(batch, by_length)
    )
    monkeypatch.setattr(around, "ROWS", 30)
    found = steps()
    assert len(passes) == (0 if kind in ("ordinary", "zeros") else 3 * 4)
    monkeypatch.setattr(engines, "one_by_one", lambda batch: partial(engines.step_dense, batch))
    torch.testing.assert_close(found, steps(), rtol=1e-12, atol=1e-14, equal_nan=True)


@pytest.mark.parametrize("shape", [(4, 40), (40, 4), (6, 12), (5, 5)])
@pytest.mark.parametrize("ns_steps", [1, 5, 12])
def test_muon_iterates_on_gram_matrices_as_on_the_matrix(shape, ns_steps):
    hyper = optimizers.get_rule("muon").values(
        ns_steps=ns_steps, ns_a=1.875, ns_b=-1.25, ns_c=0.375
    )
    source = generator(shape)
    matrix = torch.randn(shape, generator=source, dtype=torch.float64)
    wide = matrix if shape[0] <= shape[1] else matrix.mT
    plain = muon.by_products(wide / wide.norm(), hyper, ns_steps)
    expected = plain if shape[0] <= shape[1] else plain.mT
    torch.testing.assert_close(
        muon.orthogonalized(matrix.clone(), hyper), expected, rtol=0, atol=1e-11
    )
    single = muon.orthogonalized(matrix.float(), hyper)
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=1e-4)


def test_singular_matrices_stay_finite_on_their_gram_matrices():
    source = generator("singular")
    left, right = (torch.randn(size, generator=source) for size in ((8, 2), (2, 64)))
    hyper = optimizers.get_rule("muon").values(ns_steps=30)
    values = torch.linalg.svdvals(muon.orthogonalized(left @ right, hyper))
    assert values.isfinite().all()
    assert values[:2].min() > 0.6
    assert values.max() < 1.3
