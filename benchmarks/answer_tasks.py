"""The tasks of `compute_to_answer`: real data of `studies/`, models so small that runs are cheap.

Every task is judged by its validation loss.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

from studies import charlm, digits, mnist, tabular
from tuner import Task
from tuner.data import fetcher

Batch = list[Tensor]
HISTORY = 8  # characters that predict the next one
SYMBOL_WIDTH, HIDDEN = 8, 48


def _tensors(dataset: Dataset[tuple[Tensor, ...]]) -> list[Tensor]:
    """A whole data set as tensors."""
    return list(fetcher(dataset)(torch.arange(len(dataset))))  # type: ignore[arg-type]


def handwritten_digits() -> Task:
    """The data of `studies/digits.py` and a 64-32-32-10 network."""
    task = digits.build()
    return Task(
        model=lambda: nn.Sequential(
            nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10)
        ),
        train=task.train,
        val=task.val,
        loss=digits.loss,
    )


def mnist_pooled() -> Task:
    """5000 MNIST digits, pooled to 14x14 pixels, and a 196-32-10 network."""
    task = mnist.build()

    def pooled(part: Dataset[tuple[Tensor, ...]]) -> TensorDataset:
        images, labels = _tensors(part)
        small = F.avg_pool2d(images.view(-1, 1, 28, 28), 2).flatten(1)
        return TensorDataset(small, labels)

    return Task(
        model=lambda: nn.Sequential(nn.Linear(196, 32), nn.ReLU(), nn.Linear(32, 10)),
        train=pooled(task.train),
        val=pooled(task.val),
        loss=mnist.loss,
        val_batch_size=1000,
    )


def _reconstruction(model: nn.Module, batch: Batch) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[0])


def autoencoder() -> Task:
    """Digits squeezed through eight numbers: 64-24-8-24-64, mean squared error."""
    task = digits.build()

    def images(part: Dataset[tuple[Tensor, ...]]) -> TensorDataset:
        return TensorDataset(_tensors(part)[0])

    return Task(
        model=lambda: nn.Sequential(
            nn.Linear(64, 24),
            nn.Tanh(),
            nn.Linear(24, 8),
            nn.Linear(8, 24),
            nn.Tanh(),
            nn.Linear(24, 64),
        ),
        train=images(task.train),
        val=images(task.val),
        loss=_reconstruction,
    )


def _next_character(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def characters() -> Task:
    """The next character of Python's help texts from the eight before it (Bengio et al. 2003)."""
    task = charlm.build()
    alphabet = int(max(int(_tensors(part)[0].max()) for part in (task.train, task.val))) + 1

    def windows(part: Dataset[tuple[Tensor, ...]], limit: int) -> TensorDataset:
        text = _tensors(part)[0].flatten()
        all_windows = text.unfold(0, HISTORY + 1, 1)
        chosen = torch.randperm(len(all_windows), generator=torch.Generator().manual_seed(0))
        picked = all_windows[chosen[:limit]]
        return TensorDataset(picked[:, :-1].contiguous(), picked[:, -1].contiguous())

    return Task(
        model=lambda: nn.Sequential(
            nn.Embedding(alphabet, SYMBOL_WIDTH),
            nn.Flatten(),
            nn.Linear(HISTORY * SYMBOL_WIDTH, HIDDEN),
            nn.Tanh(),
            nn.Linear(HIDDEN, alphabet),
        ),
        train=windows(task.train, 100_000),
        val=windows(task.val, 1_000),
        loss=_next_character,
        val_batch_size=1_000,
    )


def diagnosis() -> Task:
    """The tumours of `studies/tabular.py` and a 30-32-1 network; no variant was chosen on it."""
    task = tabular.breast_cancer()
    return Task(
        model=lambda: nn.Sequential(nn.Linear(30, 32), nn.Tanh(), nn.Linear(32, 1)),
        train=task.train,
        val=task.val,
        loss=task.loss,
    )
