"""The Python of a configuration makes the optimizer that the trials had."""

from typing import Any

import pytest
import torch
from torch import nn

from tuner.records import Configuration
from tuner.snippet import python_of
from tuner.task import Task
from tuner.workload import make_optimizer

CONFIGURATIONS = [
    Configuration(
        optimizer="adamw",
        optimizer_args={"lr": 0.0123456789, "beta1": 0.7, "weight_decay": 0.1, "clip_norm": 1.0},
        schedule="warmup_cosine",
        schedule_args={"warmup": 0.2},
        batch_size=8,
    ),
    Configuration(
        optimizer="sgd",
        optimizer_args={"lr": 0.1, "momentum": 0.9, "nesterov": True},
        wrapper="sam",
        wrapper_args={"rho": 0.1},
        batch_size=8,
    ),
]


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda c: c.optimizer)
def test_it_trains_alike(configuration: Configuration) -> None:
    text = python_of(configuration, 6, "a study")
    assert text.startswith("# a study\n")
    data = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0))

    def trained(make: Any) -> torch.Tensor:
        torch.manual_seed(1)
        model = nn.Linear(3, 1)
        optimizer = make(model)

        def closure(batch: torch.Tensor) -> torch.Tensor:
            optimizer.zero_grad()
            loss = (model(batch) - batch.sum(1, keepdim=True)).square().mean()
            loss.backward()
            return loss

        for batch in data:
            optimizer.step(lambda batch=batch: closure(batch))
        return model.weight.detach()

    def printed(model: nn.Module) -> Any:
        names: dict[str, Any] = {"model": model}
        exec(text, names)
        assert (names["batch_size"], names["total_steps"]) == (8, 6)
        return names["optimizer"]

    task = Task(model=lambda: nn.Linear(3, 1), train=[0], val=[0], loss=lambda *_: None)
    of_trials = trained(lambda model: make_optimizer(configuration, task, model, 6))
    torch.testing.assert_close(trained(printed), of_trials)
    untrained = trained(
        lambda model: make_optimizer(
            configuration.model_copy(update={"schedule": "cosine", "schedule_args": {}}),
            task,
            model,
            6,
        )
    )
    assert not torch.allclose(untrained, of_trials)
