"""Tasks that train in milliseconds; found through `search_path`, as a user's own file is."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

from tuner import Task

Batch = list[Tensor]


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def accuracy(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    return {"acc": (model(batch[0]).argmax(-1) == batch[1]).float().mean()}


def points(size: int, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(size, 8, generator=generator)
    return TensorDataset(inputs, (inputs[:, :4].sum(1) > inputs[:, 4:].sum(1)).long())


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))


def build(**changes: object) -> Task:
    fields = {
        "model": network,
        "train": points(203),
        "val": points(57, seed=1),
        "loss": cross_entropy,
        "metrics": accuracy,
    }
    return Task(**{**fields, **changes})


def ranked() -> Task:
    """Judged by the area under the ROC curve, which is no mean over batches."""

    def evaluate(model: nn.Module, batches: Iterator[Batch]) -> dict[str, float]:
        pairs = [(model(inputs).diff(dim=1).ravel(), labels) for inputs, labels in batches]
        scores, labels = (torch.cat(column) for column in zip(*pairs, strict=True))
        above = scores[labels == 1, None] - scores[labels == 0]
        return {"auc": float(above.sign().double().mean() / 2 + 0.5)}

    return build(evaluate=evaluate)


def noisy() -> Task:
    """Everything that makes a run hard to repeat: dropout, batch statistics, noise in the loss."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return cross_entropy(model, batch) + 1e-3 * torch.rand(()) * model(batch[0]).square().mean()

    def model() -> nn.Module:
        return nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2)
        )

    return build(model=model, loss=loss)


def regression() -> Task:
    """Another shape, and a loss that is negative."""
    inputs = torch.linspace(-1, 1, 120)[:, None]
    data = TensorDataset(inputs, torch.sin(3 * inputs))

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return F.mse_loss(model(batch[0]), batch[1]) - 5.0

    return Task(
        model=lambda: nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1)),
        train=data,
        val=data,
        loss=loss,
    )


class Sentences(Dataset):
    """Examples of different lengths, as dictionaries: they need `collate` and `batch_size_of`."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"tokens": torch.arange(2 + index % 5) % 7}


def sentences() -> Task:
    def collate(examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        padded = nn.utils.rnn.pad_sequence(
            [example["tokens"] for example in examples], batch_first=True, padding_value=-1
        )
        return {"tokens": padded}

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        tokens = batch["tokens"]
        logits = model(tokens[:, :-1].clamp(min=0))
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), ignore_index=-1)

    return Task(
        model=lambda: nn.Sequential(nn.Embedding(7, 8), nn.Linear(8, 7)),
        train=Sentences(),
        val=Sentences(),
        loss=loss,
        collate=collate,
        batch_size_of=lambda batch: int((batch["tokens"][:, 1:] >= 0).sum()),
    )


def slow_load() -> Task:
    """Leaves one line in $BUILD_LOG per build, so that repeated loading shows."""
    with Path(os.environ["BUILD_LOG"]).open("a") as log:
        log.write(f"{os.getpid()}\n")
    time.sleep(0.2)
    return build()


def surroundings() -> Task:
    """Reports, as metrics, what the process may use."""

    def metrics(model: nn.Module, batch: Batch) -> dict[str, float]:
        return {"threads": torch.get_num_threads(), "core": min(os.sched_getaffinity(0))}

    return build(metrics=metrics)
