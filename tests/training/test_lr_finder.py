"""`find_lr` leaves no trace, takes every kind of optimizer, and refuses what cannot work."""

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

import optimizers
from tuner import find_lr
from tuner.lr_rigs import take_step
from tuner.records import LrCurve
from tuner.seeding import rng_state, seed_everything

LossOfBatch = Callable[[nn.Module, tiny.Batch], Tensor]
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
    "sam": lambda model: optimizers.create("sam", model, base="adamw", lr=1e-3),
    "lookahead": lambda model: optimizers.create("lookahead", model, base="sgd", lr=0.1),
    "schedulefree": lambda model: optimizers.create("schedulefree_adamw", model, lr=1e-3),
    "prodigy": lambda model: optimizers.create("prodigy", model),
    "muon": lambda model: optimizers.create("muon", model, lr=1e-2),
    "soap": lambda model: optimizers.create("soap", model, lr=1e-3, precondition_frequency=3),
}


class Walk(Sampler[int]):
    """Shuffles with a generator of its own and remembers how far it has come."""

    def __init__(self, size: int) -> None:
        self.size, self.position, self.random = size, 0, random.Random(5)

    def __iter__(self) -> Iterator[int]:
        for index in self.random.sample(range(self.size), self.size):
            self.position += 1
            yield index

    def __len__(self) -> int:
        return self.size


class Setup:
    """A model in the middle of its training, with everything a range test could disturb."""

    def __init__(self, optimizer: str) -> None:
        seed_everything(3)
        self.model = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.ReLU(), nn.Linear(16, 2)
        )
        self.model[1].register_buffer("own", torch.ones(2), persistent=False)
        self.model[1].seen = 0
        self.optimizer = OPTIMIZERS[optimizer](self.model)
        self.loader = DataLoader(
            tiny.points(203), batch_size=16, sampler=Walk(203), generator=torch.Generator()
        )
        self.train(1)
        self.model[2].eval()

    def train(self, epochs: int) -> list[float]:
        losses = []
        for _ in range(epochs):
            for batch in self.loader:
                self.count(batch)
                losses.append(float(take_step(self.optimizer, partial(self.gradients, batch))))
        return losses

    def gradients(self, batch: tiny.Batch) -> Tensor:
        self.optimizer.zero_grad()
        loss = tiny.cross_entropy(self.model, batch)
        loss.backward()
        return loss.detach()

    def count(self, batch: tiny.Batch) -> None:
        """What only this model does in a step: a buffer is replaced, an attribute counts."""
        self.model[1].own = self.model[1].own + 1
        self.model[1].seen += len(batch[1])

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
                "sampler": (self.loader.sampler.position, self.loader.sampler.random.getstate()),
                "count": self.model[1].seen,
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


def noisy(setup: Setup, fails: type[BaseException] | None = None, at: int = 0) -> LossOfBatch:
    """A loss that draws random numbers of every kind, and may raise in one of its calls."""
    calls = 0

    def loss(model: nn.Module, batch: tiny.Batch) -> Tensor:
        nonlocal calls
        calls += 1
        if fails is not None and calls == at:
            raise fails
        setup.count(batch)
        chance = float(torch.rand(())) + random.random() + float(np.random.rand())
        return tiny.cross_entropy(model, batch) + 0.01 * chance

    return loss


ENDINGS: dict[str, tuple[type[BaseException] | None, int]] = {
    "fine": (None, 0),
    "exception in the ramp": (ValueError, 20),
    "exception in a short run": (ValueError, 70),
    "Ctrl-C": (KeyboardInterrupt, 80),
}


@pytest.mark.parametrize(
    ("optimizer", "ending"),
    [(name, "fine") for name in OPTIMIZERS]
    + [(name, ending) for ending in list(ENDINGS)[1:] for name in ("torch-adamw", "sam")],
)
def test_everything_is_put_back(optimizer: str, ending: str) -> None:
    setup, untouched = Setup(optimizer), Setup(optimizer)
    before = setup.state()
    identities = [id(tensor) for tensor in (*setup.model.parameters(), *setup.model.buffers())]
    with suppress(ValueError, KeyboardInterrupt):
        loss = noisy(setup, *ENDINGS[ending])
        find_lr(setup.model, setup.optimizer, setup.loader, loss, total_steps=60, steps=70)
    assert same(setup.state(), before)
    after = [id(tensor) for tensor in (*setup.model.parameters(), *setup.model.buffers())]
    assert after == identities
    assert setup.train(2) == untouched.train(2)
    assert same(setup.state(), untouched.state())


def test_a_scaler_is_put_back() -> None:
    setup = Setup("torch-adamw")
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    before = scaler.state_dict()
    curve = find_lr(
        setup.model, setup.optimizer, setup.loader, noisy(setup), total_steps=60, steps=70,
        scaler=scaler, amp_dtype=torch.bfloat16, max_grad_norm=1.0, accumulation_steps=2,
    )  # fmt: skip
    assert curve.points
    assert scaler.state_dict() == before


def test_hooks_can_still_be_removed() -> None:
    setup = Setup("adamw")
    calls: list[str] = []
    handles = [
        setup.model[0].register_forward_hook(lambda *_: calls.append("forward")),
        setup.optimizer.register_step_post_hook(lambda *_: calls.append("step")),
    ]
    find_lr(setup.model, setup.optimizer, setup.loader, noisy(setup), total_steps=60, steps=50)
    for handle in handles:
        handle.remove()
    calls.clear()
    setup.train(1)
    assert calls == []


def test_a_fresh_model_is_put_back_too() -> None:
    model = tiny.network()
    optimizer = optimizers.create("adamw", model, lr=1e-3)
    curve = find_lr(
        model, optimizer, DataLoader(tiny.points(64), 16), nn.CrossEntropyLoss(), total_steps=60
    )
    assert curve.suggested_lr is not None
    assert optimizer.state == {}
    assert all(parameter.grad is None for parameter in model.parameters())
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3}


def test_a_scheduler_on_top_is_not_moved() -> None:
    setup = Setup("torch-adamw")
    scheduler = torch.optim.lr_scheduler.StepLR(setup.optimizer, 1)
    find_lr(setup.model, setup.optimizer, setup.loader, noisy(setup), total_steps=60, steps=50)
    assert setup.optimizer.param_groups[0]["lr"] == 1e-3
    setup.train(1)
    scheduler.step()
    assert setup.optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)


def rates_of(setup: Setup, **arguments: Any) -> tuple[LrCurve, list[list[float]]]:
    """The learning rates of all groups at every loss of a range test."""
    seen: list[list[float]] = []

    def loss(model: nn.Module, batch: tiny.Batch) -> Tensor:
        seen.append([group["lr"] for group in setup.optimizer.param_groups])
        return tiny.cross_entropy(model, batch)

    curve = find_lr(
        setup.model, setup.optimizer, setup.loader, loss, total_steps=60, steps=50, **arguments
    )
    return curve, seen


def test_ratios_of_parameter_groups_are_kept() -> None:
    _, seen = rates_of(Setup("torch-sgd"))
    moving = [rates for rates in seen if 0 < rates[0] != 0.01]
    assert len(moving) > 40
    for rates in moving:
        assert [rate / rates[0] for rate in rates] == pytest.approx(list(range(1, len(rates) + 1)))


def test_muon_has_two_rates() -> None:
    matrices, seen = rates_of(Setup("muon"))
    assert matrices.axis == "lr"
    # the second rate only follows the schedule
    assert max(rates[-1] for rates in seen) == pytest.approx(3e-4)
    assert max(rates[0] for rates in seen) > 1.0
    others, seen = rates_of(Setup("muon"), axis="adamw_lr")
    assert others.axis == "adamw_lr"
    assert max(rates[0] for rates in seen) == pytest.approx(1e-2)
    assert max(rates[-1] for rates in seen) > 1.0


def test_prodigy_is_probed_by_its_coefficient() -> None:
    curve, seen = rates_of(Setup("prodigy"))
    assert curve.axis == "d_coef"
    assert max(max(rates) for rates in seen) == 1.0


def test_a_wrapped_schedule_is_switched_off() -> None:
    model = tiny.network()
    schedule = optimizers.schedules.create("linear")
    optimizer = optimizers.create(
        "sam", model, base="sgd", lr=1.0, schedule=schedule, total_steps=10
    )
    loader = DataLoader(tiny.points(64), 16)
    curve = find_lr(model, optimizer, loader, tiny.cross_entropy, steps=60)
    assert curve.run_steps == 10
    assert optimizer.base.schedule is schedule
    assert optimizer.param_groups[0]["schedule_step"] == 0


def test_the_answer_draws_itself() -> None:
    setup = Setup("torch-adamw")
    result = find_lr(setup.model, setup.optimizer, setup.loader, tiny.cross_entropy, total_steps=60)
    assert "suggested learning rate" in repr(result)
    assert "80 % interval" in repr(result)
    assert result.reason in result._repr_html_()
    assert "data:image/png;base64," in result._repr_html_()
    axes = result.plot()
    assert axes.get_xlabel() == "learning rate"
    assert len(axes.lines) > 3
    assert result.plot(axes) is axes
