"""Handwritten digits, 8x8 pixels, of scikit-learn: a small classifier that trains in a second."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Subset, TensorDataset

from tuner import Task

Batch = tuple[Tensor, Tensor]


def loss(model: nn.Module, batch: Batch) -> Tensor:
    images, labels = batch
    return F.cross_entropy(model(images), labels)


def metrics(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    images, labels = batch
    return {"acc": (model(images).argmax(-1) == labels).float().mean()}


def build() -> Task:
    digits = load_digits()
    images = torch.tensor(digits.data / 16, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    data = TensorDataset(images, labels)
    return Task(
        model=lambda: nn.Sequential(
            nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
        ),
        train=Subset(data, shuffled[:1437].tolist()),
        val=Subset(data, shuffled[1437:].tolist()),
        loss=loss,
        metrics=metrics,
    )
