"""Half precision parameters: what a small learning rate moves, and what a checkpoint keeps."""

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import optimizers
from optimizers import precision
from optimizers.core import Points
from optimizers.optimizer import make_class
from tests.optimizers.helpers import drive, problem
from tests.optimizers.table import ROWS

BY_ROW = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.rule)
BY_HALF = pytest.mark.parametrize("dtype", precision.HALF, ids=str)


@BY_ROW
@BY_HALF
@pytest.mark.parametrize("low_precision", precision.LOW_PRECISION)
def test_state_in_float32_and_exact_resume(row, dtype, low_precision):
    start, grads = problem((5, 3), 4, dtype)
    param = torch.nn.Parameter(start.clone())
    arguments = {**row.settings[-1], "low_precision": low_precision}
    opt = optimizers.create(row.rule, [param], **arguments)
    path = drive(opt, param, grads)
    assert path[-1].dtype == dtype
    kept = dict(opt.state[param])
    assert ("compensation" in kept) == (low_precision == "kahan")
    assert kept.pop("compensation", torch.tensor(0, dtype=torch.int16)).dtype == torch.int16
    assert {value.dtype for value in kept.values() if value.dim()} <= {torch.float32}
    again = torch.nn.Parameter(path[-1].clone())
    resumed = optimizers.create(row.rule, [again], **arguments)
    resumed.load_state_dict(opt.state_dict())
    assert torch.equal(drive(opt, param, grads)[-1], drive(resumed, again, grads)[-1])


@BY_ROW
@BY_HALF
@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_a_single_number_steps_as_a_vector_of_one(row, dtype, engine):
    """Beside it a number of the state in float64 would count as much."""
    ends = []
    for shape in ((), (1,)):
        param = torch.nn.Parameter(torch.ones(shape, dtype=dtype))
        opt = optimizers.create(row.rule, [param], engine=engine, **row.settings[-1])
        ends.append(drive(opt, param, [torch.full_like(param, 0.3)] * 3)[-1].reshape(1))
    torch.testing.assert_close(*ends)


@cache
def moved(rule, low_precision, dtype, steps=2000):
    """How far weights near 1 move at a learning rate of 1e-4, with noise in the gradient."""
    start, _ = problem((8, 8), 1)
    param = torch.nn.Parameter((1 + 0.1 * start).to(dtype))
    begin = param.detach().double().clone()
    opt = optimizers.create(rule, [param], lr=1e-4, low_precision=low_precision)
    noise = torch.randn(steps, 8, 8, generator=torch.Generator().manual_seed(0))
    for step in range(steps):
        param.grad = (1 + 0.5 * noise[step]).to(dtype)
        opt.step()
    return (param.detach().double() - begin).norm().item()


@BY_HALF
@pytest.mark.parametrize("rule", ["sgd", "adagrad", "adamw", "lion"])
def test_small_learning_rates_move_weights_as_far_as_in_float32(rule, dtype):
    full = moved(rule, "none", torch.float32)
    assert 0.97 * full < moved(rule, "kahan", dtype) < 1.03 * full


@BY_HALF
def test_small_learning_rates_by_other_remedies(dtype):
    full = moved("adamw", "none", torch.float32)
    assert 0.9 * full < moved("adamw", "stochastic", dtype) < 1.1 * full
    assert moved("adamw", "none", dtype) < 0.9 * full


@BY_HALF
@BY_ROW
def test_compensated_weights_are_those_of_float32(row, dtype):
    """Sixteen bits and sixteen more hold all that a float32 of that size does."""
    start, grads = problem((5, 3), 30, dtype)
    exact = torch.nn.Parameter(start.float())
    expected = drive(
        optimizers.create(row.rule, [exact], lr=1e-3), exact, [g.float() for g in grads]
    )
    param = torch.nn.Parameter(start.clone())
    opt = optimizers.create(row.rule, [param], lr=1e-3)
    path = drive(opt, param, grads)
    assert torch.equal(path[-1], expected[-1].to(dtype))
    wide = precision.widen(path[-1], opt.state[param]["compensation"])
    torch.testing.assert_close(wide, expected[-1], rtol=2e-6, atol=0)


@given(st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1, max_size=8))
@example([1 + 2.0**-8, -1 - 2.0**-8, 1 + 3 * 2.0**-8, 2.0**-133, 0.0])
@settings(max_examples=200, deadline=None)
def test_what_bfloat16_cannot_hold_is_kept(values):
    wide = torch.tensor(values)
    param = torch.empty(len(values), dtype=torch.bfloat16)
    lost = torch.empty(len(values), dtype=precision.COMPENSATION_DTYPE)
    precision.narrow(param, wide, lost)
    assert torch.equal(param, wide.to(torch.bfloat16))
    back = precision.widen(param, lost)
    # half way between two bfloat16 numbers the lost part is one too large for 16 bits
    assert ((back.view(torch.int32) - wide.view(torch.int32)).abs() <= 1).all()


@given(st.lists(st.floats(2.0**-14, 2.0**15, width=32), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_what_float16_cannot_hold_is_kept(values):
    wide = torch.tensor(values) * torch.tensor([1, -1]).repeat(len(values))[: len(values)]
    param = torch.empty(len(values), dtype=torch.float16)
    lost = torch.empty(len(values), dtype=precision.COMPENSATION_DTYPE)
    precision.narrow(param, wide, lost)
    assert torch.equal(precision.widen(param, lost), wide)


@BY_HALF
@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_weights_that_are_set_to_zero_stay_next_to_it(engine, dtype):
    """Pruning between two steps leaves the lost part of the weights that were."""
    start, grads = problem((40,), 6, dtype)
    param = torch.nn.Parameter(start.clone())
    opt = optimizers.SGD([param], lr=1e-3, engine=engine)
    drive(opt, param, grads)
    assert (opt.state[param]["compensation"] < 0).any()
    param.data.zero_()
    drive(opt, param, [torch.zeros_like(start)])
    assert param.abs().max().item() < 1e-30


@BY_HALF
def test_skipped_steps_leave_the_compensation(dtype):
    start, grads = problem((5, 3), 3, dtype)
    param = torch.nn.Parameter(start.clone())
    opt = optimizers.AdamW([param], lr=1e-3)
    drive(opt, param, grads)
    before = copy.deepcopy(opt.state_dict()["state"][0])
    assert before["compensation"].any()
    drive(opt, param, [torch.full_like(start, float("nan"))])
    torch.testing.assert_close(opt.state_dict()["state"][0], before, rtol=0, atol=0)
    assert opt.skipped_steps == 1


@pytest.mark.parametrize("low_precision", ["stochastic", "none"])
def test_another_remedy_takes_over_from_a_checkpoint(low_precision):
    start, grads = problem((5, 3), 4, torch.bfloat16)
    one, two = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    first = optimizers.AdamW([one])
    drive(first, one, grads[:2])
    second = optimizers.AdamW([two], low_precision=low_precision)
    second.load_state_dict(first.state_dict())
    drive(second, two, grads[2:])
    assert "compensation" in first.state[one]
    assert "compensation" not in second.state[two]


def test_checkpoints_of_torch_begin_with_nothing_lost():
    start, grads = problem((5, 3), 3, torch.bfloat16)
    theirs, mine = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    peer = torch.optim.AdamW([theirs], lr=1e-3)
    drive(peer, theirs, grads)
    opt = optimizers.AdamW([mine], lr=1e-3)
    opt.load_state_dict(peer.state_dict())
    drive(opt, mine, grads)
    assert opt.state[mine]["step"] == 6
    assert opt.state[mine]["compensation"].any()
    peer.load_state_dict(opt.state_dict())
    drive(peer, theirs, grads)


def test_evaluation_point_sees_the_compensated_weight():
    rule = replace(optimizers.get_rule("sgd"), points=Points(lambda p, s, h: p - 1))
    param = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    opt = make_class(rule)([param], lr=2.0**-9, momentum=0.5)
    drive(opt, param, [torch.ones(1, dtype=torch.bfloat16)])
    train = param.detach().clone()
    opt.eval()
    assert param.item() == -(2.0**-9)
    opt.train()
    assert torch.equal(param.detach(), train)


def test_large_tensors_keep_their_compensation_in_pieces(monkeypatch):
    start, grads = problem((5, 3), 6, torch.bfloat16)
    ends = []
    for chunk in (100, 4):
        monkeypatch.setattr("optimizers.pieces.CHUNK", chunk)
        param = torch.nn.Parameter(start.clone())
        opt = optimizers.AdamW([param], lr=1e-3)
        ends.append((drive(opt, param, grads)[-1], opt.state[param]["compensation"]))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)


@given(
    st.lists(st.floats(-6e4, 6e4, width=32), min_size=1, max_size=8),
    st.sampled_from(precision.HALF),
)
@settings(max_examples=100, deadline=None)
def test_stochastic_rounding_is_to_a_neighbour_and_right_on_average(values, dtype):
    wide = torch.tensor(values).expand(2000, len(values))
    noise = precision.noise_source(wide.device, 1, 0)
    rounded = precision.round_stochastically(wide, dtype, noise)
    assert torch.equal(rounded.to(dtype).float(), rounded)
    info = torch.finfo(dtype)
    spacing = wide[0].abs() * info.eps + info.smallest_normal * info.eps
    assert ((rounded - wide).abs() < spacing).all()
    # five standard errors
    assert ((rounded - wide).double().mean(0).abs() < spacing * 5 * 0.5 / 2000**0.5).all()
    exact = wide.to(dtype).float()
    assert torch.equal(precision.round_stochastically(exact, dtype, noise), exact)


def test_random_rounding_leaves_the_generator_of_the_training_alone():
    param = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    opt = optimizers.SGD([param], low_precision="stochastic")
    before = torch.get_rng_state()
    drive(opt, param, [torch.ones(3, dtype=torch.bfloat16)])
    assert torch.equal(torch.get_rng_state(), before)


def test_unknown_choice():
    with pytest.raises(ValueError, match="low_precision='float8' is not valid; allowed: kahan, st"):
        optimizers.SGD([torch.nn.Parameter(torch.ones(1))], low_precision="float8")
