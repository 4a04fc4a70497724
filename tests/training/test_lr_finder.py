"""The range test finds good rates on real problems, and leaves no trace."""

import copy
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import optimizers
from tests.jobs import configuration, job
from tuner import find_lr
from tuner.errors import UsageError
from tuner.lr_finder import HIGH, LOW, ladder, lr_range, search
from tuner.seeding import rng_state, seed_everything

STUDY_STEPS = 120


def digits(optimizer: str, **arguments: Any) -> dict[str, Any]:
    chosen = configuration(
        optimizer=optimizer, optimizer_args={"lr": 1.0, **arguments}, batch_size=32
    )
    return {"configuration": chosen, "search_path": (), "max_steps": STUDY_STEPS}


# Half a decade around the rates with the lowest validation loss of 400-step runs with warm-up and
# cosine decay (quarter-decade grid, two seeds); for Lion the short test is known to aim higher.
GOOD_RATES = {
    "sgd": (digits("sgd"), 0.1, 1.0),
    "momentum": (digits("sgd", momentum=0.9), 0.03, 0.3),
    "adamw": (digits("adamw"), 2e-3, 3e-2),
    "lion": (digits("lion"), 5e-4, 6e-3),
}


@pytest.mark.parametrize("name", GOOD_RATES)
@pytest.mark.parametrize("seed", range(2))
def test_suggestions_on_digits_are_good_rates(name: str, seed: int) -> None:
    changes, low, high = GOOD_RATES[name]
    curve = lr_range(job("studies.digits:build", seed=seed, **changes))
    assert curve.suggested_lr is not None, curve.reason
    assert low < curve.suggested_lr < high
    assert curve.diverges_at is not None
    assert curve.suggested_lr < curve.diverges_at / 2


def test_the_same_job_gives_the_same_curve() -> None:
    assert lr_range(job(max_steps=90)) == lr_range(job(max_steps=90))


def test_a_negative_loss_is_no_obstacle() -> None:
    curve = lr_range(job("tiny:regression", max_steps=120))
    assert curve.suggested_lr is not None, curve.reason
    assert all(loss < -4 for _, loss in curve.points[:20])


def test_a_loss_that_is_never_finite_is_reported() -> None:
    curve = lr_range(job("faulty:nan_loss", max_steps=60))
    assert curve.suggested_lr is None
    assert curve.flags == ["too-short"]


def test_progress_counts_to_the_number_of_steps() -> None:
    seen: list[tuple[int, int]] = []
    lr_range(job(max_steps=90), lambda step, steps: seen.append((step, steps)))
    assert seen[0] == (1, 90)
    assert all(step <= steps == 90 for step, steps in seen)
    assert len(seen) < 150


def test_the_ladder_is_even_and_goes_on() -> None:
    rates = ladder(1e-4, 1e-1, 4)
    assert [next(rates) for _ in range(5)] == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1.0])
    assert max(ladder(LOW, HIGH, 50)) <= 1e4 * 1.01


def ramp_of(
    explodes: float, learns: float
) -> Callable[[Iterator[float]], list[tuple[float, float]]]:
    """A problem without noise, that learns from one rate on and explodes at another."""

    def ramp(lrs: Iterator[float]) -> list[tuple[float, float]]:
        points = []
        for index, lr in enumerate(lrs):
            noise = 1e-3 * (-1) ** index
            points.append((lr, noise + (1.0 - 0.8 / (1 + (learns / lr) ** 2))))
            if lr > explodes:
                return [*points[:-1], (lr, float("nan"))]
        return points

    return ramp


@pytest.mark.parametrize("explodes", [1e-9, 1e-7, 1e-3, 1.0, 300.0, 5e3])
def test_the_range_moves_to_where_the_answer_is(explodes: float) -> None:
    curve = search(ramp_of(explodes, explodes / 100), 1e-6, 1e-1, 120)
    assert curve.suggested_lr is not None, curve.reason
    assert explodes / 300 < curve.suggested_lr < explodes / 2.9
    assert explodes <= (curve.diverges_at or 0) < explodes * 1.5


def test_no_explosion_anywhere_is_said() -> None:
    curve = search(ramp_of(1e9, 1e-3), LOW, HIGH, 120)
    assert "no-divergence" in curve.flags
    assert curve.suggested_lr is not None


def test_an_explosion_everywhere_is_said() -> None:
    curve = search(lambda lrs: [(next(lrs), float("nan"))], LOW, HIGH, 120)
    assert curve.flags == ["diverges-everywhere"]
    assert curve.suggested_lr is None


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "torch-adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3),
    "torch-sgd": lambda model: torch.optim.SGD(
        [{"params": [p], "lr": 0.01 * (i + 1)} for i, p in enumerate(model.parameters())],
        momentum=0.9,
    ),
    "adamw": lambda model: optimizers.create(
        "adamw",
        model,
        lr=1e-3,
        schedule=optimizers.schedules.create("warmup_cosine"),
        total_steps=100,
    ),
    "lion": lambda model: optimizers.create("lion", model, lr=1e-3, clip_norm=1.0),
}


class Setup:
    """A model in the middle of its training, with everything a range test could disturb."""

    def __init__(self, optimizer: str) -> None:
        seed_everything(3)
        self.model = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.ReLU(), nn.Linear(16, 2)
        )
        self.model[1].register_buffer("own", torch.ones(2), persistent=False)
        self.optimizer = OPTIMIZERS[optimizer](self.model)
        self.loader = DataLoader(
            tiny.points(203),
            batch_size=16,
            shuffle=True,
            generator=torch.Generator().manual_seed(1),
        )
        self.train(1)
        self.model[2].eval()

    def train(self, epochs: int) -> list[float]:
        losses = []
        for _ in range(epochs):
            for batch in self.loader:
                self.optimizer.zero_grad()
                loss = tiny.cross_entropy(self.model, batch)
                loss.backward()
                self.optimizer.step()
                losses.append(loss.item())
        return losses

    def state(self) -> dict[str, Any]:
        attributes = {
            name: value
            for name, value in vars(self.optimizer).items()
            if isinstance(value, (bool, int, float, str, list, type(None)))
            and name != "param_groups"
        }
        return copy.deepcopy(
            {
                "parameters": [p.detach() for p in self.model.parameters()],
                "gradients": [p.grad for p in self.model.parameters()],
                "buffers": dict(self.model.named_buffers()),
                "modes": [module.training for module in self.model.modules()],
                "optimizer": self.optimizer.state_dict(),
                "attributes": attributes,
                "rng": rng_state(),
                "loader": self.loader.generator.get_state(),
            }
        )


def same(one: Any, other: Any) -> bool:
    """Bit-equality of nested values."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def fine(model: nn.Module, batch: tiny.Batch) -> Tensor:
    return tiny.cross_entropy(model, batch) + 0.01 * torch.rand(())


def failing(error: type[BaseException]) -> Callable[[nn.Module, tiny.Batch], Tensor]:
    calls = 0

    def loss(model: nn.Module, batch: tiny.Batch) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 20:
            raise error
        return fine(model, batch)

    return loss


ENDINGS: dict[str, Callable[[], Callable[[nn.Module, tiny.Batch], Tensor]]] = {
    "fine": lambda: fine,
    "exception": lambda: failing(ValueError),
    "Ctrl-C": lambda: failing(KeyboardInterrupt),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("ending", ENDINGS)
def test_everything_is_put_back(optimizer: str, ending: str) -> None:
    setup, untouched = Setup(optimizer), Setup(optimizer)
    before = setup.state()
    identities = [id(parameter) for parameter in setup.model.parameters()]
    with suppress(ValueError, KeyboardInterrupt):
        find_lr(setup.model, setup.optimizer, setup.loader, ENDINGS[ending](), steps=90)
    assert same(setup.state(), before)
    assert [id(parameter) for parameter in setup.model.parameters()] == identities
    seed_everything(7)
    expected = untouched.train(2)
    seed_everything(7)
    assert setup.train(2) == expected
    assert same(setup.state()["parameters"], untouched.state()["parameters"])


def test_a_fresh_model_is_put_back_too() -> None:
    model = tiny.network()
    optimizer = optimizers.create("adamw", model, lr=1e-3)
    curve = find_lr(model, optimizer, DataLoader(tiny.points(64), 16), tiny.cross_entropy)
    assert curve.suggested_lr is not None
    assert optimizer.state == {}
    assert all(parameter.grad is None for parameter in model.parameters())
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3}


def test_a_scheduler_on_top_is_not_moved() -> None:
    setup = Setup("torch-adamw")
    scheduler = torch.optim.lr_scheduler.StepLR(setup.optimizer, 1)
    find_lr(setup.model, setup.optimizer, setup.loader, fine, steps=60)
    assert setup.optimizer.param_groups[0]["lr"] == 1e-3
    setup.train(1)
    scheduler.step()
    assert setup.optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)


def test_ratios_of_parameter_groups_are_kept() -> None:
    setup = Setup("torch-sgd")
    seen: list[list[float]] = []

    def loss(model: nn.Module, batch: tiny.Batch) -> Tensor:
        seen.append([group["lr"] for group in setup.optimizer.param_groups])
        return fine(model, batch)

    find_lr(setup.model, setup.optimizer, setup.loader, loss, steps=60)
    for rates in seen:
        assert [rate / rates[0] for rate in rates] == pytest.approx(list(range(1, len(rates) + 1)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_loader": iter([1])}, "read only once"),
        ({"train_loader": []}, "train_loader is empty"),
        ({"low": 1.0, "high": 0.1}, "expected 0 < low < high"),
        ({"low": 0.0}, "expected 0 < low < high"),
    ],
)
def test_arguments_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    setup = Setup("lion")
    arguments = {"train_loader": setup.loader, "loss": fine, **changes}
    with pytest.raises(UsageError, match=message):
        find_lr(setup.model, setup.optimizer, **arguments)
