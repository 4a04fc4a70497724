"""Tables notice whatever is done to a tensor behind their back, asked from C or from Python."""

import sys
from array import array
from collections import defaultdict

import pytest
import torch

import optimizers
from optimizers.kernels import watch
from tests.optimizers.helpers import drive


@pytest.fixture(params=["interface", "python"], autouse=True)
def way(request, monkeypatch):
    if request.param == "python":
        monkeypatch.setattr(watch, "interface", lambda: None)
    return request.param


def library():
    """Of any kernel."""
    param = torch.nn.Parameter(torch.ones(3))
    opt = optimizers.SGD([param], lr=0.1, engine="compiled")
    drive(opt, param, [torch.ones(3)])
    return opt._planner.known[0].tables[0].library


CHANGES = {
    "elsewhere": lambda t: setattr(t, "data", t.data.clone()),
    "transposed": lambda t: setattr(t, "data", t.data.mT),
    "cut": lambda t: setattr(t, "data", t.data[:4]),
    "one dimension more": lambda t: setattr(t, "data", t.data.unsqueeze(0)),
    "other memory": lambda t: t.set_(torch.zeros(6, 6)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_change_is_seen(way, change):
    assert (watch.interface() is None) == (way == "python")
    tensors = [torch.zeros(3), torch.zeros(6, 6), torch.zeros(()), torch.zeros(2, 3, 4).mT]
    seen = watch.Watch(tensors, library())
    tensors[1].add_(1)
    assert seen.same()
    assert seen.same()
    change(tensors[1])
    assert not seen.same()


def test_nothing_is_kept_alive():
    memory = bytearray(400)
    before = sys.getrefcount(memory)
    tensors = [torch.frombuffer(memory, dtype=torch.float32)]
    seen = watch.Watch(tensors, library())
    assert seen.same()
    del seen
    tensors.clear()
    assert sys.getrefcount(memory) == before


OTHERS = {
    "of another dtype": lambda: torch.zeros(6, 6, dtype=torch.float64),
    "of another shape": lambda: torch.zeros(6, 7),
    "of other strides": lambda: torch.zeros(6, 6).mT,
    "sparse": lambda: torch.zeros(6, 6).to_sparse(),
    "without memory": lambda: torch.empty(6, 6, device="meta"),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_others_may_come_in_their_stead(other):
    places = array("q", bytes(16))
    seen = watch.Watch([torch.zeros(3), torch.zeros(6, 6)], library(), places)
    others = [torch.zeros(3), torch.zeros(6, 6)]
    assert seen.same(others)
    assert [*places] == [tensor.data_ptr() for tensor in others]
    assert not seen.same([others[0], other()])
    assert seen.same(others)


def rows(dtype=torch.float32):
    """Two parameters with state and gradients, and what watches them."""
    params = [torch.nn.Parameter(torch.ones(6, 6, dtype=dtype)) for _ in range(2)]
    for param in params:
        param.grad = torch.ones_like(param)
    states = [{"step": torch.zeros(()), "mean": torch.zeros(6, 6)} for _ in params]
    places = array("q", bytes(16))
    seen = watch.RowWatch(params, states, library(), places, real=not dtype.is_complex)
    return params, states, places, seen


def replace_grad(param, state, grad):
    param.grad = grad


ROW_CHANGES = {
    "parameter elsewhere": lambda p, s: setattr(p, "data", p.data.clone()),
    "another tensor in the state": lambda p, s: s.update(mean=s["mean"].clone()),
    "state elsewhere": lambda p, s: s["mean"].set_(torch.zeros(6, 6)),
    "more state": lambda p, s: s.update(more=torch.zeros(6, 6)),
    "less state": lambda p, s: s.pop("mean"),
    "no state": lambda p, s: s.clear(),
    "no gradient": lambda p, s: setattr(p, "grad", None),
    "transposed gradient": lambda p, s: replace_grad(p, s, torch.zeros(6, 6).mT),
    "sparse gradient": lambda p, s: replace_grad(p, s, torch.zeros(6, 6).to_sparse()),
    "gradient of a subclass": lambda p, s: replace_grad(
        p, s, torch.nn.Parameter(torch.zeros(6, 6), False)
    ),
    "negated gradient": lambda p, s: replace_grad(p, s, torch._neg_view(torch.zeros(6, 6))),
}


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("change", ROW_CHANGES.values(), ids=ROW_CHANGES)
def test_every_change_of_a_row_is_seen(change, row):
    params, states, places, seen = rows()
    assert seen.same()
    for param in params:
        param.grad = torch.zeros_like(param)
    assert seen.same()
    assert [*places] == [param.grad.data_ptr() for param in params]
    change(params[row], states[row])
    assert not seen.same()


def test_conjugated_gradients_are_seen():
    params, _, _, seen = rows(torch.complex64)
    assert seen.same()
    params[1].grad = params[1].grad.conj()
    assert not seen.same()


def test_gradients_that_were_looked_at_are_free_again(way):
    params, _, _, seen = rows()
    grad = params[0].grad
    before = sys.getrefcount(grad)
    for _ in range(5):
        assert seen.same()
    assert sys.getrefcount(grad) == before


CONTAINER_CHANGES = {
    "another parameter": lambda members, states: members.append(object()),
    "one parameter less": lambda members, states: members.pop(),
    "a parameter replaced": lambda members, states: members.__setitem__(0, object()),
    "parameters in another order": lambda members, states: members.reverse(),
    "another state": lambda members, states: states.update({object(): {}}),
    "one state less": lambda members, states: states.popitem(),
    "a state replaced": lambda members, states: states.update({members[1]: {}}),
    "a state of another": lambda members, states: states.update({object(): states.popitem()[1]}),
    "states exchanged": lambda members, states: states.update(
        zip(members, [states[members[1]], states[members[0]]], strict=True)
    ),
}


@pytest.mark.parametrize("change", CONTAINER_CHANGES.values(), ids=CONTAINER_CHANGES)
def test_every_change_of_what_holds_rows_is_seen(change):
    params, states, _, seen = rows()
    members, owner = [*params], defaultdict(dict, zip(params, states, strict=True))
    seen.hold([owner, members, []])
    assert seen.same()
    change(members, owner)
    assert not seen.same()
    seen.hold([dict(owner), [*members]])
    assert seen.same()
