"""How far updates follow the gradient, on the library's rules and torch's."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import optimizers
from optimizers.mistakes import MISTAKES
from tuner.lr_axis import axis_of
from tuner.lr_batches import Batches, Split
from tuner.lr_response import cap, response
from tuner.lr_rigs import LoaderRig
from tuner.lr_search import GENTLE
from tuner.snapshot import preserved


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))


def deeper() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 3)
    )


def measured(
    make: object,
    ask: Callable[[LoaderRig], float] = lambda rig: rig.response(1e-3),
    network: Callable[[], nn.Module] = small,
) -> float:
    torch.manual_seed(0)
    model = network()
    optimizer = make(model)  # type: ignore[operator]
    loader = DataLoader(TensorDataset(torch.randn(800, 6), torch.randint(0, 3, (800,))), 16)
    before = [p.detach().clone() for p in model.parameters()]
    with preserved(model, optimizer, loader) as restore:
        batches = Batches(loader, "loader", 40)
        rig = LoaderRig(
            model,
            optimizer,
            axis_of(optimizer),
            restore,
            train=batches,
            held_out=batches,
            split=Split(8),
            loss=lambda m, batch: nn.functional.cross_entropy(m(batch[0]), batch[1]),
        )
        rig.warm(20)
        found = ask(rig)
        assert rig.steps == 21
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    return found


@pytest.mark.parametrize(
    ("rule", "low", "high"),
    [
        ("sgd", 0.99, 1.0),
        ("adamw", 0.5, 0.8),  # after thirty steps there is momentum left, and most of the moment
        ("rmsprop", 0.5, 0.8),
        ("lion", 0.0, 0.02),
        ("lamb", 0.0, 0.1),
        ("muon", 0.0, 0.1),
    ],
)
def test_signs_and_trust_ratios_do_not_follow_the_gradient(
    rule: str, low: float, high: float
) -> None:
    found = measured(lambda m: optimizers.create(rule, m, silence=MISTAKES))
    assert low <= found <= high


def test_a_trust_ratio_that_grows_with_its_parameters_is_measured_gently() -> None:
    def lamb(model: nn.Module) -> torch.optim.Optimizer:
        return optimizers.create("lamb", model, silence=MISTAKES)

    # 0.25 is best for a dozen steps; thirty with one gradient enlarge the parameters a lot
    gently, roughly = (
        measured(lamb, lambda rig, lr=lr: rig.response(lr), deeper) for lr in (GENTLE * 0.25, 0.25)
    )
    assert gently < 0.05 < roughly


@pytest.mark.parametrize(
    "make",
    [
        lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9),
        lambda m: torch.optim.Adam(m.parameters()),
        lambda m: torch.optim.Adagrad(m.parameters()),
        lambda m: optimizers.SAM(m.parameters(), base="sgd", rho=0.05),
    ],
)
def test_a_foreign_or_wrapped_rule_is_measured_like_any_other(make: object) -> None:
    assert measured(make) > 0.5


def test_parameters_that_never_move_tell_nothing() -> None:
    still = [torch.zeros(3)]
    assert response(still, lambda: None, lambda: [torch.ones(3)]) == 0.5


@pytest.mark.parametrize(
    "make",
    [
        lambda m: optimizers.create("adafactor", m, silence=MISTAKES),
        lambda m: optimizers.SAM(m.parameters(), base="adafactor", silence=MISTAKES),
        lambda m: torch.optim.Adafactor(m.parameters()),
    ],
)
def test_the_rate_of_a_relative_step_is_capped(make: object) -> None:
    """By 1 / sqrt(t), which is the twenty-first step here."""
    assert measured(make, lambda rig: rig.cap(1e-8, 1e4)) == pytest.approx(21**-0.5, rel=0.13)


@pytest.mark.parametrize("rule", [name for name in optimizers.names() if name != "adafactor"])
def test_other_rules_have_no_cap(rule: str) -> None:
    make = lambda m: optimizers.create(rule, m, silence=MISTAKES)  # noqa: E731
    assert measured(make, lambda rig: rig.cap(1e-8, 1e4)) == math.inf


def test_a_gradient_of_zero_tells_of_no_cap() -> None:
    still = [torch.zeros(3)]
    assert cap(still, lambda: None, lambda lr: [torch.zeros(3)], 1e-8, 1e4) == math.inf
