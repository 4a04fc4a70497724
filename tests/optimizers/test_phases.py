"""Recorded steps with sums in them: phases over pieces come out as one pass over everything."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizers.eager import phases, program
from optimizers.eager.recording import Made, record

INPUTS = 3
ENTRIES = {
    "add": lambda x, y: x + y,
    "difference": lambda x, y: x - 0.5 * y,
    "average": lambda x, y: torch.lerp(x, y, 0.25),
    "product": lambda x, y: x * y,
    "squash": lambda x, y: torch.tanh(x),
    "half": lambda x, y: x * 0.5,
}
SUMS = {"sum": torch.sum, "norm": torch.linalg.vector_norm}
NUMBERS = {
    "total": lambda m, n: m + n,
    "positive": lambda m, n: torch.where(m > 0, m, n),
    "small": lambda m, n: m * 0.01,
}
KINDS = ("entry", "entry", "sum", "number", "scaled", "shifted")


@st.composite
def updates(draw):
    """Instructions over three inputs, and what becomes of each input."""
    entries, numbers = list(range(INPUTS)), []
    instructions = []
    for made in range(INPUTS, INPUTS + draw(st.integers(1, 12))):
        kind = draw(st.sampled_from(KINDS if numbers else KINDS[:3]))
        entry, number = st.sampled_from(entries), st.sampled_from(numbers or [0])
        if kind == "entry":
            row = draw(st.sampled_from(sorted(ENTRIES))), draw(entry), draw(entry)
        elif kind == "sum":
            row = draw(st.sampled_from(sorted(SUMS))), draw(entry), None
        elif kind == "number":
            row = draw(st.sampled_from(sorted(NUMBERS))), draw(number), draw(number)
        else:
            row = kind, draw(entry), draw(number)
        instructions.append((kind, row))
        (numbers if kind in ("sum", "number") else entries).append(made)
    results = [draw(st.one_of(st.none(), st.sampled_from(entries))) for _ in range(INPUTS)]
    outputs = draw(st.lists(st.sampled_from(numbers), max_size=2)) if numbers else []
    return instructions, results, outputs


def compute(update, inputs):
    """New values of the inputs, None where they stay, and the sums that are asked for."""
    instructions, results, outputs = update
    values = list(inputs)
    for kind, (name, first, second) in instructions:
        if kind == "entry":
            made = ENTRIES[name](values[first], values[second])
        elif kind == "sum":
            made = SUMS[name](values[first])
        elif kind == "number":
            made = NUMBERS[name](values[first], values[second])
        else:
            made = values[first] * values[second] if kind == "scaled" else (
                values[first] - values[second]
            )  # fmt: skip
        values.append(made)
    new = [None if value is None else values[value] for value in results]
    return new, {str(value): values[value] for value in outputs}


@settings(deadline=None, max_examples=300)
@given(updates(), st.booleans())
def test_any_update_in_pieces_is_that_of_the_whole(update, keep):
    source = torch.Generator().manual_seed(len(update[0]))
    inputs = [torch.rand(23, generator=source, dtype=torch.float64) for _ in range(INPUTS)]
    new, sums = compute(update, inputs)
    few = [tensor[:5] * 0.7 for tensor in inputs]  # what is recorded are other values
    found = record(few, lambda: Made(*compute(update, few), {}))
    again = program.program(found, inputs[0], keep).fill(())
    after = [tensor.clone() for tensor in inputs]
    parts = list(zip(*(tensor.split(9) for tensor in after), strict=True))
    totals = again.run(parts, program.Memory())
    largest = max(float(value.abs().max()) for value in [*inputs, *filter(torch.is_tensor, new)])
    for old, wanted, value in zip(inputs, new, after, strict=True):
        torch.testing.assert_close(
            value, old if wanted is None else wanted, rtol=1e-9, atol=1e-11 * largest
        )
    for key, value in sums.items():
        torch.testing.assert_close(totals[key], value, rtol=1e-9, atol=1e-11 * largest)


def phases_of(body, keep=False):
    """The phases of what ``body`` does to a gradient, a parameter and a state, and what is kept."""
    few = [torch.rand(5) for _ in range(3)]
    found = phases.Phases(record(few, lambda: Made(body(*few), {}, {})), keep)
    names = [[step.call.__name__ for step in phase.steps] for phase in found.run()]
    return names, len(found.kept)


def test_what_a_step_needs_after_its_norm_is_computed_again():
    def lamb(grad, param, state):
        average = torch.lerp(state, grad, 0.1)
        direction = torch.sqrt(average)
        return [None, param - direction / torch.linalg.vector_norm(direction), average]

    assert phases_of(lamb) == ([["lerp", "sqrt", "norm_of"], ["sqrt", "div", "sub"]], 0)


def test_what_takes_several_steps_is_kept_where_there_is_memory():
    def lamb(grad, param, state):
        direction = torch.sqrt(torch.exp(torch.neg(param)))
        return [None, param - direction / torch.linalg.vector_norm(direction), grad]

    first = ["neg", "exp", "sqrt", "norm_of"]
    assert phases_of(lamb)[0][0] == first
    assert phases_of(lamb)[1] == 0
    assert phases_of(lamb, keep=True) == ([first, ["div", "sub", "copied"]], 1)


def test_what_can_no_longer_be_computed_is_kept():
    def forgetful(grad, param, state):
        before = torch.sqrt(state)
        return [None, param - before / before.sum(), torch.lerp(before, grad, 0.1) / grad.sum()]

    names, kept = phases_of(forgetful)
    assert kept == 0  # the state is written last, as it waits for a sum, too
    assert names[1].count("sqrt") == 1

    def overwriting(grad, param, state):
        before = torch.sqrt(state)
        average = torch.lerp(before, grad, 0.1)
        return [None, param - before / average.sum(), average]

    assert phases_of(overwriting) == ([["sqrt", "lerp", "sum_of"], ["div", "sub"]], 1)
