"""Rules through torch.compile: on a GPU, if there is one, and through its C++ twin everywhere."""

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import optimizers
from optimizers.kernels import inductor
from tests.optimizers.helpers import generator
from tests.optimizers.table import ROWS

# of torch.jit, which torch.compile still imports
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
GPUS = ["cuda"] if torch.cuda.is_available() else []
ELEMENTWISE = [row for row in ROWS if optimizers.get_rule(row.rule).scope == "element"]


def train(row, engine, device, settings, steps=4):
    source = generator("inductor")
    shapes = [(500,), (7, 3), (4, 3, 2, 2), (1,)]
    starts = [torch.randn(shape, generator=source) for shape in shapes]
    starts += [torch.randn(5, 6, generator=source).bfloat16()]
    params = [nn.Parameter(start.to(device)) for start in starts]
    opt = optimizers.create(row.rule, params, engine="eager", clip_norm=1.0, **settings)
    opt.engine = engine  # on a CPU the constructor would take the other kernels
    for step in range(steps):
        opt.param_groups[0]["lr"] = settings["lr"] / (step + 1)
        for param in params:
            noise = torch.randn(param.shape, generator=source)
            param.grad = noise.to(param.device, param.dtype)
        opt.step()
    return [param.detach().float().cpu() for param in params]


def check(row, device, settings):
    counters.clear()
    compiled = train(row, "compiled", device, settings)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs == 2, "one for each dtype"
    train(row, "compiled", device, {**settings, "lr": settings["lr"] * 0.7})
    assert counters["stats"]["unique_graphs"] == graphs
    for one, other in zip(compiled, train(row, "eager", device, settings), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=1e-5)


if GPUS:  # there is no such test without one, rather than one that is skipped

    @pytest.mark.parametrize("row", ELEMENTWISE, ids=lambda row: row.rule)
    @pytest.mark.parametrize("device", GPUS)
    def test_on_a_gpu(row, device):
        check(row, device, {"lr": 1e-2, **row.settings[-1]})


@pytest.mark.parametrize("row", ELEMENTWISE, ids=lambda row: row.rule)
def test_every_rule_is_one_graph(row, monkeypatch):
    """What torch.compile makes of a rule, up to the point where a kernel is written."""
    monkeypatch.setattr(inductor, "DEVICES", {"cpu"})
    monkeypatch.setattr(inductor, "BACKEND", "eager")
    monkeypatch.setattr(inductor, "_known", {})
    check(row, "cpu", {"lr": 1e-2, **row.settings[-1]})


@pytest.mark.slow
def test_the_compilers_kernel(monkeypatch):
    monkeypatch.setattr(inductor, "DEVICES", {"cpu"})
    monkeypatch.setattr(inductor, "_known", {})
    check(next(row for row in ROWS if row.rule == "adamw"), "cpu", {"lr": 1e-2})
