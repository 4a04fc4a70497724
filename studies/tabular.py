"""Two small tables of scikit-learn: regression of diabetes progression, and tumour diagnosis."""

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from tuner import Task

Batch = list[Tensor]


def split(inputs: np.ndarray, targets: np.ndarray) -> tuple[TensorDataset, TensorDataset]:
    """A fixed fifth for validation; inputs standardised by the training part."""
    order = np.random.default_rng(0).permutation(len(inputs))
    val, train = np.split(order, [len(inputs) // 5])
    mean, std = inputs[train].mean(0), inputs[train].std(0)
    scaled = torch.tensor((inputs - mean) / std, dtype=torch.float32)
    wanted = torch.tensor(targets, dtype=torch.float32)[:, None]
    return TensorDataset(scaled[train], wanted[train]), TensorDataset(scaled[val], wanted[val])


def diabetes() -> Task:
    """Regression: metric "rmse" in standard deviations of the target; 1 is as good as its mean."""
    data = load_diabetes()
    train, val = split(data.data, (data.target - data.target.mean()) / data.target.std())

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return F.mse_loss(model(batch[0]), batch[1])

    return Task(
        model=lambda: nn.Sequential(nn.Linear(10, 64), nn.Tanh(), nn.Linear(64, 1)),
        train=train,
        val=val,
        loss=loss,
        metrics=lambda model, batch: {"rmse": loss(model, batch).sqrt()},
    )


def breast_cancer() -> Task:
    """Two classes: metric "acc"."""
    data = load_breast_cancer()
    train, val = split(data.data, data.target)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return F.binary_cross_entropy_with_logits(model(batch[0]), batch[1])

    def metrics(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {"acc": ((model(batch[0]) > 0) == (batch[1] > 0.5)).float().mean()}

    return Task(
        model=lambda: nn.Sequential(
            nn.Linear(30, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 1)
        ),
        train=train,
        val=val,
        loss=loss,
        metrics=metrics,
    )
