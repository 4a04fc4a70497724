"""Tables notice whatever is done to a tensor behind their back, asked from C or from Python."""

import sys
from array import array

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
