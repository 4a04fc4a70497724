"""Tasks whose answer is known: quadratics under the noise of their batches.

The loss of weights w is the mean over examples x of h * (w - x)**2 / 2, summed over coordinates; on
the validation data x = 0, so that a validation loss is the distance to the best weights, and zero
is the best there is. `expected_loss` in tests/study/test_planted.py has it in closed form.
"""

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tuner import Task

Batch = list[Tensor]

BOWL = (1.0, 0.3, 0.1, 0.03)
CURVED = (1.0, 0.1, 0.01, 0.003)  # badly conditioned: momentum pays where batches are large
START = 3.0  # of every weight


class Weights(nn.Module):
    """Weights above a quadratic of these curvatures, whose gradients are `scale` times as large."""

    def __init__(self, curvatures: tuple[float, ...] = BOWL, scale: float = 1.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((len(curvatures),), START))
        self.register_buffer("h", torch.tensor(curvatures))
        self.register_buffer("scale", torch.tensor(scale))


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return model.scale * 0.5 * (model.h * (model.w - batch[0]) ** 2).sum(1).mean()


def examples(noise: float, size: int = 4096) -> TensorDataset:
    """Around zero, with a mean of exactly zero."""
    x = torch.randn(size, len(BOWL), generator=torch.Generator().manual_seed(0))
    return TensorDataset(noise * (x - x.mean(0)))


ZERO = TensorDataset(torch.zeros(8, len(BOWL)))


def bowl() -> Task:
    return Task(model=Weights, train=examples(1.0), val=ZERO, loss=loss)


def curved() -> Task:
    return Task(model=lambda: Weights(CURVED), train=examples(2.0), val=ZERO, loss=loss)


def rare() -> Task:
    """In one of six seeds gradients are half as large: only adaptive rules do not care."""

    def model() -> nn.Module:
        return Weights(scale=0.5 if torch.rand(()) < 1 / 6 else 1.0)

    def distance(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {"distance": 0.5 * (model.h * model.w**2).sum()}

    return Task(model=model, train=examples(0.3), val=ZERO, loss=loss, metrics=distance)
