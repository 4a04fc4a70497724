"""Every rule against its paper's formula, against torch, and against itself under other callers."""

import inspect

import pytest
import torch
from torch.func import vmap

import optimizers
from optimizers import core
from tests.optimizers.helpers import drive, problem
from tests.optimizers.table import ROWS, STEPS, Row
from tests.reference import relative_error, run


def cases(shapes):
    """Every row with each of its settings and each of its shapes."""
    return [
        pytest.param(
            row, settings, shape, id=f"{row.rule}-{number}-{'x'.join(map(str, shape)) or 'scalar'}"
        )
        for row in ROWS
        for number, settings in enumerate(row.settings)
        for shape in shapes(row)
    ]


CASES = cases(lambda row: row.shapes)
TORCH_CASES = cases(lambda row: row.torch_shapes or row.shapes)
SETTINGS = [
    pytest.param(row, settings, id=f"{row.rule}-{number}")
    for row in ROWS
    for number, settings in enumerate(row.settings)
]
BY_ROW = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.rule)


def has_peer(row: Row, settings):
    return row.torch_class is not None and not set(settings) & set(row.only_ours)


def ours(row: Row, settings, param):
    return optimizers.create(row.rule, [param], **settings)


def test_every_rule_has_a_row():
    assert [row.rule for row in ROWS] == optimizers.names()


@pytest.mark.parametrize(("row", "settings", "shape"), CASES)
def test_agrees_with_the_paper(row, settings, shape):
    start, grads = problem(shape, STEPS)
    param = torch.nn.Parameter(start.clone())
    path = drive(ours(row, settings, param), param, grads)
    expected = run(row.reference, start.numpy(), [grad.numpy() for grad in grads], **settings)
    for actual, wanted in zip(path, expected, strict=True):
        assert relative_error(actual.numpy(), wanted) < row.reference_error


@pytest.mark.parametrize(
    ("row", "settings", "shape"), [case for case in TORCH_CASES if has_peer(*case.values[:2])]
)
def test_agrees_with_torch(row, settings, shape):
    start, grads = problem(shape, STEPS)
    mine, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    arguments = optimizers.get_rule(row.rule).pack(settings)
    path = drive(ours(row, settings, mine), mine, grads)
    peer = row.torch_class([theirs], **{**row.torch_fixed, **arguments})
    for actual, wanted in zip(path, drive(peer, theirs, grads), strict=True):
        assert relative_error(actual.numpy(), wanted.numpy()) < row.torch_error


@pytest.mark.parametrize(("row", "settings"), [case for case in SETTINGS if has_peer(*case.values)])
def test_checkpoints_cross_to_torch_and_back(row, settings):
    start, grads = problem((5, 3), 12)
    arguments = optimizers.get_rule(row.rule).pack(settings)

    def fresh(*, torch_class):
        param = torch.nn.Parameter(start.clone())
        if torch_class:
            return param, row.torch_class([param], **{**row.torch_fixed, **arguments})
        return param, optimizers.create(row.rule, [param], **arguments)

    param, straight = fresh(torch_class=False)
    expected = drive(straight, param, grads)[-1]
    for first_is_torch in (True, False):
        before, first = fresh(torch_class=first_is_torch)
        drive(first, before, grads[:5])
        after, second = fresh(torch_class=not first_is_torch)
        after.data.copy_(before.data)
        second.load_state_dict(first.state_dict())
        actual = drive(second, after, grads[5:])[-1]
        assert relative_error(actual.numpy(), expected.numpy()) < row.torch_error


@pytest.mark.parametrize(("row", "settings"), SETTINGS)
def test_big_tensors_are_cut_without_a_difference(row, settings, monkeypatch):
    start, grads = problem((5, 3), 6)
    whole, cut = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    expected = drive(ours(row, settings, whole), whole, grads)
    monkeypatch.setattr("optimizers.pieces.CHUNK", 4)
    actual = drive(ours(row, settings, cut), cut, grads)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@BY_ROW
def test_tensors_as_hyperparameters_under_vmap(row):
    """K trials at once equal K trials one by one, and keep the parameters' dtype."""
    rule = optimizers.get_rule(row.rule)
    settings = [s for s in row.settings if not set(s) & set(rule.options)]
    flats = [vars(rule.values(**s)) for s in settings]
    shape = next(shape for shape in row.shapes if len(shape) == 2)
    start, grads = problem(shape, 4, torch.float32)
    # one structure for all trials: with the state of whichever trial has the most
    inits = [rule.state(start, rule.values(**s)) for s in settings]
    widest = max(inits, key=len)
    chosen = [n for n, init in enumerate(inits) if init.keys() == widest.keys()]
    names = list(rule.hypers)
    table = {
        key: torch.tensor([flats[n][key] for n in chosen], dtype=torch.float64) for key in names
    }

    def one(hyper, grad, param, state, t):
        options = {key: row.default for key, row in rule.options.items()}
        values = core.Values(**hyper, **options, schedule=1.0)
        vars(values).update(rule.model.initial(values) if rule.model else {})
        return core.advance(rule, rule.weight_decay_mode, grad, param, state, values, t)

    params = start.expand(len(chosen), *shape).clone()
    state = {key: torch.zeros(len(chosen), *v.shape) + v for key, v in widest.items()}
    separate = [(start, dict(widest)) for _ in chosen]
    for t, grad in enumerate(grads, start=1):
        time = torch.tensor(float(t), dtype=torch.float64)
        params, state = vmap(one, in_dims=(0, None, 0, 0, None))(table, grad, params, state, time)
        separate = [
            one({key: flats[n][key] for key in names}, grad, param, own, float(t))
            for n, (param, own) in zip(chosen, separate, strict=True)
        ]
    assert params.dtype == torch.float32
    assert all(value.dtype == widest[key].dtype for key, value in state.items())
    torch.testing.assert_close(params, torch.stack([p for p, _ in separate]), rtol=1e-5, atol=1e-6)


@BY_ROW
def test_rows_are_complete(row):
    rule = optimizers.get_rule(row.rule)
    assert {"lr", "weight_decay"} <= rule.hypers.keys()
    rule.validate(rule.arguments)
    for name, hyper in rule.hypers.items():
        assert hyper.doc, name
        assert hyper.low < hyper.high, name
        for bound in (hyper.low, hyper.high):
            hyper.validate(rule.name, name, bound)
        assert hyper.source or not hyper.priority, f"{name}: a searched range needs a source"
        assert not hyper.log or (1 - hyper.high if hyper.complement else hyper.low) > 0, name
    assert all((rule.paper, rule.summary, rule.when, rule.equations.strip()))


@BY_ROW
def test_signature_and_class(row):
    rule = optimizers.get_rule(row.rule)
    kind = getattr(optimizers, rule.class_name)
    parameters = inspect.signature(kind).parameters
    assert list(parameters)[: len(rule.arguments) + 1] == ["params", *rule.arguments]
    assert kind.__name__ == rule.class_name
    assert rule.class_name in optimizers.__all__


@BY_ROW
def test_positional_arguments(row):
    param = torch.nn.Parameter(torch.zeros(3, 3))
    kind = getattr(optimizers, optimizers.get_rule(row.rule).class_name)
    assert kind([param], 0.125).param_groups[0]["lr"] == 0.125


@BY_ROW
@pytest.mark.parametrize(
    ("name", "value"), [("lr", -1.0), ("lr", float("nan")), ("lr", "big"), ("weight_decay", -0.1)]
)
def test_bad_values_are_named(row, name, value):
    param = torch.nn.Parameter(torch.zeros(3, 3))
    with pytest.raises((ValueError, TypeError)) as caught:
        optimizers.create(row.rule, [param], **{name: value})
    message = str(caught.value)
    assert name in message
    assert repr(value) in message
    assert "allowed" in message
    assert "\n" not in message


def test_memory_per_parameter():
    memory = {name: optimizers.get_rule(name).memory() for name in optimizers.names()}
    assert memory["sgd"] == 0
    assert optimizers.get_rule("sgd").memory(momentum=0.9) == 1
    assert memory["lion"] == 1
    assert memory["adam"] == memory["adamw"] == 2


def test_effect_of_decay_in_the_gradient_and_beside_it():
    """Decoupled and L2 decay are one thing for SGD and two for Adam."""
    ends = {}
    for name in ("sgd", "adam"):
        for mode in ("l2", "decoupled"):
            start, grads = problem((5, 3), 3)
            param = torch.nn.Parameter(start.clone())
            settings = {"lr": 0.1, "weight_decay": 0.1, "weight_decay_mode": mode}
            ends[name, mode] = drive(optimizers.create(name, [param], **settings), param, grads)[-1]
    assert relative_error(ends["sgd", "l2"].numpy(), ends["sgd", "decoupled"].numpy()) < 1e-14
    assert (ends["adam", "l2"] - ends["adam", "decoupled"]).abs().max() > 1e-3


@BY_ROW
def test_complex_parameters_are_pairs_of_reals(row):
    """Elementwise rules take complex parameters as torch does; the others refuse them."""
    rule = optimizers.get_rule(row.rule)
    settings = row.settings[-1]
    start, grads = problem((5, 3, 2), 4)
    param = torch.nn.Parameter(torch.view_as_complex(start.clone()))
    if rule.scope != "element":
        with pytest.raises(TypeError, match="complex parameters are not supported"):
            ours(row, settings, param)
        return
    pairs = torch.nn.Parameter(start.clone())
    actual = drive(ours(row, settings, param), param, [torch.view_as_complex(g) for g in grads])
    expected = drive(ours(row, settings, pairs), pairs, grads)
    assert torch.equal(torch.view_as_real(actual[-1]), expected[-1])


@pytest.mark.parametrize("name", optimizers.names())
def test_a_row_says_whether_steps_are_linear_in_the_gradients(name):
    """Twice the gradients move the weights twice as far, or the row does not say so."""
    start, grads = problem((4, 3), 8)  # the first five of radam are momentum SGD's
    moved = []
    for scale in (1.0, 2.0):
        param = torch.nn.Parameter(start.clone())
        optimizer = optimizers.create(name, [param], lr=1e-3, weight_decay=0.0)
        moved.append(drive(optimizer, param, [scale * grad for grad in grads])[-1] - start)
    assert torch.allclose(moved[1], 2 * moved[0]) is optimizers.get_rule(name).linear


@pytest.mark.parametrize("name", [n for n in optimizers.names() if optimizers.get_rule(n).summed])
def test_a_summed_number_lengthens_steady_steps(name):
    """Under one and the same gradient a step is 1 / (1 - momentum) times that without momentum."""
    start, (grad,) = problem((4, 3), 1)
    steps = []
    for momentum in (0.0, 0.75):
        param = torch.nn.Parameter(start.clone())
        arguments = {optimizers.get_rule(name).summed: momentum}
        optimizer = optimizers.create(name, [param], lr=1e-9, weight_decay=0.0, **arguments)
        path = drive(optimizer, param, [grad] * 1_000)
        steps.append((path[-1] - path[-2]).norm())
    assert steps[1] / steps[0] == pytest.approx(4.0, rel=1e-2)
