"""Pieces that repeat what was recorded of another come out as if computed by themselves."""

import pytest
import torch

import optimizers
from optimizers import pieces
from optimizers.eager import program, recording, repeated

SCOPES = {name: optimizers.get_rule(name).scope for name in optimizers.names()}
ELEMENTWISE = [name for name, scope in SCOPES.items() if scope == "element"]
WITH_SUMS = [name for name, scope in SCOPES.items() if scope in ("sums", "model")]


def run(rule, dtype=torch.float64, **arguments):
    """Pieces of one size, a shorter one, a longer one, and a parameter that comes late."""
    source = torch.Generator().manual_seed(3)
    shapes = ((37, 11), (500,), (30,), (90,))
    params = [
        torch.randn(shape, generator=source, dtype=dtype).requires_grad_() for shape in shapes
    ]
    opt = optimizers.create(rule, params, engine="eager", **arguments)
    for step in range(8):
        for number, param in enumerate(params):
            grad = torch.randn(param.shape, generator=source, dtype=dtype)
            param.grad = grad if step > 3 or number < 3 else None
        opt.step()
    return [param.detach() for param in params] + [
        value for param in params for value in opt.state[param].values()
    ]


def together_and_alone(monkeypatch, rule, arguments):
    """What parameters and states are with and without recordings."""
    alone = run(rule, **arguments)
    monkeypatch.setattr(repeated, "_templates", {})  # those of other rewritings
    for module in (pieces, repeated):
        monkeypatch.setattr(module, "LEAST", 8)
    monkeypatch.setattr(pieces, "CHUNK", 100)
    repeats, real = [], program.Program.run
    monkeypatch.setattr(
        program.Program, "run", lambda *args: (repeats.append(args), real(*args))[1]
    )
    together = run(rule, **arguments)
    assert bool(repeats) == (arguments.get("dtype") != torch.bfloat16)
    return zip(together, alone, strict=True)


ARGUMENTS = pytest.mark.parametrize(
    "arguments",
    [
        {"clip_norm": 1.0, "weight_decay": 0.1},
        {"clip_value": 0.5, "maximize": True},
        {"clip_per_layer": 0.5, "weight_decay": 0.1, "weight_decay_mode": "l2"},
        {"dtype": torch.float32},
        {"dtype": torch.bfloat16},
    ],
    ids=str,
)


@ARGUMENTS
@pytest.mark.parametrize("rule", ELEMENTWISE)
def test_repeated_pieces_are_bit_identical_as_recorded(monkeypatch, rule, arguments):
    monkeypatch.setattr(program, "fewer", lambda steps, wanted: steps)
    for one, other in together_and_alone(monkeypatch, rule, arguments):
        assert torch.equal(one, other)


@ARGUMENTS
@pytest.mark.parametrize("rule", [*ELEMENTWISE, *WITH_SUMS])
def test_repeated_pieces_are_the_same_up_to_rounding(monkeypatch, rule, arguments):
    single = 5e-6 if rule in WITH_SUMS else 2e-6  # sums over pieces are added in another order
    for one, other in together_and_alone(monkeypatch, rule, arguments):
        error = 1e-12 if one.dtype == torch.float64 else single
        torch.testing.assert_close(one, other, rtol=error, atol=error)


def recorded(body, count=2):
    """A program that does what ``body(*inputs)`` does, or None."""
    inputs = [torch.arange(5.0) + number for number in range(count)]
    found = recording.record(inputs, lambda: recording.Made(body(*inputs), {}, {}))
    return None if found is None else program.program(found, inputs[0]).fill(())


@pytest.mark.parametrize(
    "body",
    [
        lambda a, b: [torch.lerp(a, b, 0.5), None],
        lambda a, b: [a * 2 + b, torch.lerp(a, b, 0.5)],  # the second needs what the first replaces
        lambda a, b: [b, a],  # exchanged
        lambda a, b: [b * 1.0, None],
        lambda a, b: [b, a + b],
        lambda a, b: [a - b, b],
        lambda a, b: [(a - b) * 1.0, a - b],
        lambda a, b: [a + torch.tensor(2.0, dtype=torch.float64) * b, None],
        lambda a, b: [a * b.sum(), None],
        lambda a, b: [b * a.sum(), a * b.sum()],
    ],
)
def test_what_can_be_repeated(body):
    again = recorded(body)
    inputs = [torch.linspace(-1, 1, 3), torch.ones(3)]
    expected = [
        old if new is None else new
        for old, new in zip(inputs, body(*(tensor.clone() for tensor in inputs)), strict=True)
    ]
    again.run([inputs], program.Memory())
    for found, wanted in zip(inputs, expected, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    "body",
    [
        lambda a, b: [a.sort().values, None],
        lambda a, b: [a * a.max(), None],
        lambda a, b: [a * a.sum(dtype=torch.float64), None],
        lambda a, b: [a * torch.linalg.vector_norm(b, 1), None],
        lambda a, b: [a.add_(b), None],
        lambda a, b: [a + torch.ones(5), None],  # a tensor that it does not know
        lambda a, b: [a[:5] + b, None],
    ],
)
def test_what_cannot_be_repeated(body):
    assert recorded(body) is None
