"""The monitor: its numbers are right, it names sick layers, and training does not notice it."""

import copy

import pytest
import torch
from torch import nn

import optimizers
from optimizers import Monitor
from optimizers.monitor import LayerStats, judge

SILENT = ("OPT002", "OPT003")


def mlp(depth, activation, width=16):
    torch.manual_seed(0)
    hidden = [part for _ in range(depth) for part in (nn.Linear(width, width), activation())]
    return nn.Sequential(*hidden, nn.Linear(width, 4))


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(32, 16, generator=generator), torch.arange(32) % 4


def train(model, optimizer, steps):
    inputs, targets = batch()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()


def watched(model, name="sgd", steps=1, **arguments):
    optimizer = optimizers.create(name, model, silence=SILENT, **arguments)
    monitor = Monitor(model, every=1)
    monitor.attach(optimizer)
    train(model, optimizer, steps)
    return monitor


def test_numbers_of_plain_sgd():
    model = mlp(1, nn.ReLU)
    before = copy.deepcopy(model)
    monitor = watched(model, lr=0.1)
    [report] = monitor.reports
    assert list(report.layers) == ["0", "2"]
    for name in ("0", "2"):
        layer, old = model.get_submodule(name), before.get_submodule(name)
        grads = torch.cat([p.grad.flatten() for p in layer.parameters()])
        weights = torch.cat([p.detach().flatten() for p in old.parameters()])
        stats = report.layers[name]
        assert stats.grad_norm == pytest.approx(float(grads.norm()), rel=1e-5)
        assert stats.weight_norm == pytest.approx(float(weights.norm()), rel=1e-5)
        assert stats.update_norm == pytest.approx(0.1 * float(grads.norm()), rel=1e-4)
        assert stats.update_ratio == stats.update_norm / stats.weight_norm


OPTIMIZERS = {
    "ours": lambda model: optimizers.create("adamw", model, clip_norm=0.1),
    "torch's": lambda model: torch.optim.AdamW(model.parameters()),
    "lookahead": lambda model: optimizers.create("lookahead", model, base="sgd", k=2),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_training_does_not_notice(make):
    plain, seen = mlp(2, nn.Tanh), mlp(2, nn.Tanh)
    train(plain, make(plain), 7)
    optimizer = make(seen)
    monitor = Monitor(seen, every=2)
    monitor.attach(optimizer)
    train(seen, optimizer, 7)
    assert all(
        torch.equal(a, b) for a, b in zip(plain.parameters(), seen.parameters(), strict=True)
    )
    assert [report.step for report in monitor.reports] == [1, 3, 5, 7]


def test_memory_is_bounded_and_detaching_ends_it():
    model = mlp(1, nn.ReLU)
    optimizer = optimizers.create("sgd", model)
    monitor = Monitor(model, every=1, history=3)
    monitor.attach(optimizer)
    train(model, optimizer, 8)
    assert [report.step for report in monitor.reports] == [6, 7, 8]
    assert monitor._before is None
    monitor.detach()
    train(model, optimizer, 1)
    assert monitor.last.step == 8


@pytest.mark.parametrize(
    "model",
    [
        mlp(3, nn.ReLU),
        nn.Sequential(nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
                      nn.Flatten(), nn.Linear(32, 4)),
        nn.Sequential(nn.Unflatten(1, (4, 4)), nn.TransformerEncoderLayer(4, 2, 8),
                      nn.Flatten(), nn.Linear(16, 4)),
    ],
    ids=["mlp", "cnn", "transformer"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_healthy_model_raises_no_alarm(model, name):
    monitor = watched(copy.deepcopy(model), name, steps=20, lr=1e-2)
    assert {v for report in monitor.reports for v in report.verdicts.values()} == {"ok"}


def test_a_layer_behind_dead_units_is_dead():
    model = mlp(2, nn.ReLU)
    nn.init.constant_(model[2].bias, -100.0)
    assert watched(model).last.dead == ["0", "2"]


def test_a_layer_that_is_never_used_is_dead_and_a_frozen_one_is_not_listed():
    model = mlp(2, nn.ReLU)
    model.unused = nn.Linear(3, 3)
    model.forward = lambda inputs: nn.Sequential(*list(model)[:5])(inputs)
    model[0].requires_grad_(False)
    report = watched(model).last
    assert report.dead == ["unused"]
    assert "0" not in report.layers


def test_a_deep_sigmoid_network_vanishes_from_the_input_on():
    report = watched(mlp(12, nn.Sigmoid)).last
    assert report.vanishing[0] == "0"
    assert report.verdicts["24"] == "ok"
    assert report.exploding == []


def test_too_large_a_learning_rate_explodes():
    assert watched(mlp(2, nn.ReLU), lr=1e3).last.exploding


def test_a_sudden_gradient_explodes():
    model = mlp(1, nn.ReLU)
    optimizer = optimizers.create("sgd", model, lr=1e-4)
    monitor = Monitor(model, every=1)
    monitor.attach(optimizer)
    train(model, optimizer, 5)
    assert monitor.last.exploding == []
    inputs, targets = batch()
    (1e4 * nn.functional.cross_entropy(model(inputs), targets)).backward()
    optimizer.step()
    assert monitor.last.exploding == ["0", "2"]


def test_a_skipped_step_names_the_layer():
    model = mlp(1, nn.ReLU)
    optimizer = optimizers.create("adamw", model)
    monitor = Monitor(model)
    monitor.attach(optimizer)
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    model[2].weight.grad[0, 0] = torch.nan
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert (monitor.last.exploding, monitor.last.dead) == (["2"], ["0"])
    assert monitor.last.layers["2"].update_norm == 0


def test_gradients_of_a_closure_count():
    model = mlp(1, nn.ReLU)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = Monitor(model)
    monitor.attach(optimizer)
    inputs, targets = batch()

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert all(stats.grad_norm > 0 for stats in monitor.last.layers.values())


def test_half_precision_sparse_gradients_and_shared_parameters():
    torch.manual_seed(0)
    model = nn.ModuleDict({"in": nn.Embedding(5, 4, sparse=True), "out": nn.Linear(4, 5)})
    model["twin"] = model["out"]
    model["out"].half()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = Monitor(model)
    monitor.attach(optimizer)
    hidden = model["in"](torch.tensor([1, 1, 3]))
    (1e4 * model["out"](hidden.half())).sum().backward()
    optimizer.step()
    assert list(monitor.last.layers) == ["in", "out"]
    expected = model["in"].weight.grad.to_dense().norm()
    assert monitor.last.layers["in"].grad_norm == pytest.approx(float(expected), rel=1e-5)


def test_layers_whose_weights_are_zero_have_no_ratio():
    stats = LayerStats(grad_norm=1.0, weight_norm=0.0, update_norm=0.1)
    assert stats.update_ratio is None
    assert judge({"new": stats}, {}) == {"new": "ok"}


@pytest.mark.parametrize("arguments", [{"every": 0}, {"history": 0}])
def test_bad_numbers(arguments):
    with pytest.raises(ValueError, match=r"Monitor: \w+=0 is not valid; allowed"):
        Monitor(mlp(1, nn.ReLU), **arguments)
