"""Recorded steps come out with fewer operations, and the same results up to rounding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import optimizers
from optimizers.eager.rewriting import Place, Step, fewer

INPUTS = 3
FACTORS = (0.5, -2.0, 3.0, 1e-3, 1e15)
BINARY = (torch.add, torch.sub, torch.mul, torch.div)


def evaluate(steps, inputs):
    """All values that steps make, by number."""
    values = dict(enumerate(inputs))
    for step in steps:
        args = [values[arg.number] if isinstance(arg, Place) else arg for arg in step.args]
        if not isinstance(args[0], torch.Tensor):
            args[0] = torch.tensor(args[0], dtype=torch.float64)
        values[step.result] = step.call(*args, **step.kwargs, out=torch.empty_like(inputs[0]))
    return values


@st.composite
def programs(draw):
    """Steps over three inputs, and which of their values are wanted."""
    steps = []
    for result in range(INPUTS, INPUTS + draw(st.integers(1, 8))):
        value = st.integers(0, result - 1).map(Place)
        kind = draw(st.sampled_from(("binary", "number", "unary", "third")))
        if kind == "binary":
            call = draw(st.sampled_from(BINARY))
            alpha = {"alpha": draw(st.sampled_from(FACTORS))}
            kwargs = alpha if call in (torch.add, torch.sub) and draw(st.booleans()) else {}
            steps.append(Step(call, (draw(value), draw(value)), result, kwargs))
        elif kind == "number":
            call, number = draw(st.sampled_from(BINARY)), draw(st.sampled_from(FACTORS))
            steps.append(Step(call, (draw(value), number), result))
        elif kind == "unary":
            call = draw(st.sampled_from((torch.neg, torch.abs, torch.sign)))
            steps.append(Step(call, (draw(value),), result))
        else:
            call = draw(st.sampled_from((torch.addcmul, torch.addcdiv)))
            kwargs = {"value": draw(st.sampled_from(FACTORS))}
            steps.append(Step(call, (draw(value), draw(value), draw(value)), result, kwargs))
    made = [step.result for step in steps]
    return steps, {made[-1], *draw(st.sets(st.sampled_from(made)))}


@settings(deadline=None)
@given(programs())
def test_any_program_keeps_its_results(program):
    steps, wanted = program
    source = torch.Generator().manual_seed(len(steps))
    inputs = torch.rand(INPUTS, 5, generator=source, dtype=torch.float64) + 0.5
    before, rewritten = evaluate(steps, inputs), fewer(steps, wanted)
    after = evaluate(rewritten, inputs)
    assert len(rewritten) <= len(steps)
    largest = max(float(value.nan_to_num().abs().max()) for value in before.values())
    for number in wanted:  # sums that cancel keep the error of what they are made of
        torch.testing.assert_close(
            after[number], before[number], rtol=1e-9, atol=1e-12 * largest, equal_nan=True
        )


def names(steps):
    return [step.call.__name__ for step in steps]


def test_a_factor_moves_into_what_reads_it():
    scaled = Step(torch.mul, (Place(1), 0.25), 3)
    squares = Step(torch.addcmul, (Place(2), Place(3), Place(3)), 4, {"value": 2.0})
    quotient = Step(torch.div, (Place(3), Place(4)), 5)
    new = Step(torch.add, (Place(0), Place(5)), 6, {"alpha": -0.5})
    found = fewer([scaled, squares, quotient, new], {4, 6})
    assert names(found) == ["addcmul", "addcdiv"]
    assert [step.kwargs["value"] for step in found] == [2.0 * 0.25**2, -0.5 * 0.25]


def test_a_factor_moves_past_a_root():
    steps = [
        Step(torch.div, (Place(0), 4.0), 3),
        Step(torch.sqrt, (Place(3),), 4),
        Step(torch.add, (Place(4), 1e-8), 5),
    ]
    found = fewer(steps, {5})
    assert names(found) == ["sqrt", "add"]
    assert found[1].args[0] == 1e-8
    assert found[1].kwargs == {"alpha": 0.5}


@pytest.mark.parametrize("factor", [1e-30, 1e30, 0.0, float("nan")])
def test_a_factor_whose_square_leaves_float32_stays(factor):
    scaled = Step(torch.mul, (Place(1), factor), 3)
    squares = Step(torch.addcmul, (Place(2), Place(3), Place(3)), 4)
    assert fewer([scaled, squares], {4}) == [scaled, squares]


def test_a_sum_of_sums_is_one():
    steps = [
        Step(torch.sub, (Place(0), Place(1)), 3),
        Step(torch.mul, (Place(2), 4.0), 4),
        Step(torch.add, (Place(4), Place(3)), 5, {"alpha": 0.5}),
        Step(torch.add, (Place(0), Place(5)), 6, {"alpha": -0.25}),
    ]
    found = fewer(steps, {6})  # p - (4 g + (p - z) / 2) / 4 = 7/8 p + z/8 - g
    assert names(found) == ["lerp", "add"]
    assert found[0].args == (Place(0), Place(1), 0.125)
    assert found[1].args[1] == Place(2)
    assert found[1].kwargs == {"alpha": -1.0}


def test_a_value_and_a_multiple_of_it_are_a_product():
    half = Step(torch.mul, (Place(1), 0.5), 3)
    average = Step(torch.lerp, (Place(1), Place(3), 0.25), 4)
    assert fewer([half, average], {4}) == [Step(torch.mul, (Place(1), 0.875), 4)]


def test_what_nobody_reads_is_left_out():
    assert fewer([Step(torch.sqrt, (Place(0),), 3), Step(torch.neg, (Place(1),), 4)], {4}) == [
        Step(torch.mul, (Place(1), -1.0), 4)
    ]


@pytest.mark.parametrize("size", [1e-12, 1e12, 1e25])
@pytest.mark.parametrize("rule", ["adagrad", "rmsprop", "adam"])
def test_gradients_of_any_size_are_clipped_as_in_float64(rule, size):
    source = torch.Generator().manual_seed(1)
    wide = torch.randn(2**16, generator=source, dtype=torch.float64)
    grads = [torch.randn(2**16, generator=source) * size for _ in range(3)]
    results = []
    for dtype in (torch.float32, torch.float64):
        param = torch.nn.Parameter(wide.to(dtype, copy=True))
        # a limit as small as the gradients, which are clipped in any case
        limits = {"clip_norm": min(1.0, size), "eps": 1e-30}
        opt = optimizers.create(rule, [param], engine="eager", lr=0.1, **limits)
        for grad in grads:
            param.grad = grad.to(dtype)
            opt.step()
        results.append(param.detach().double() - wide)
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-5)
