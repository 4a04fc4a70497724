"""What `find_lr` takes and what it refuses, in one line and before anything is trained."""

from collections.abc import Iterator
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from tuner import find_lr
from tuner.errors import UsageError
from tuner.lr_batches import Batches


def found(**changes: Any) -> Any:
    torch.manual_seed(0)
    model = tiny.network()
    arguments = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "train_loader": DataLoader(tiny.points(203), 16, shuffle=True),
        "loss": tiny.cross_entropy,
        "total_steps": 60,
    }
    return find_lr(**{**arguments, **changes})


def lazy() -> dict[str, Any]:
    model = nn.LazyLinear(2)
    return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": tiny.network}, "model must be an nn.Module, not function"),
        (lazy(), "run one batch through it first"),
        ({"optimizer": "adamw"}, "optimizer must be a torch.optim.Optimizer, not str"),
        ({"optimizer": torch.optim.LBFGS(tiny.network().parameters())}, "LBFGS"),
        ({"train_loader": None}, "train_loader must be a DataLoader or a list, not NoneType"),
        ({"train_loader": iter([1])}, "train_loader can be read only once"),
        ({"val_loader": iter([1])}, "val_loader can be read only once"),
        ({"train_loader": []}, "train_loader is empty"),
        ({"val_loader": []}, "val_loader is empty"),
        ({"low": 1.0, "high": 0.1}, "expected 0 < low < high"),
        ({"low": 0.0}, "expected 0 < low < high"),
        ({"total_steps": 0}, "total_steps = 0"),
        ({"accumulation_steps": 0}, "accumulation_steps = 0"),
        ({"axis": "momentumm"}, "this optimizer has lr"),
        ({"schedule": "cosin"}, "schedule 'cosin' is not known"),
        ({"loss": nn.CrossEntropyLoss(), "train_loader": [torch.ones(3)]}, "inputs, targets"),
        ({"loss": F.cross_entropy, "train_loader": [{"x": 1, "y": 2}]}, "inputs, targets"),
        ({"loss": nn.CrossEntropyLoss(reduction="none")}, r"one number as a tensor, not \(16,\)"),
        ({"loss": lambda model, batch: 0.5}, "one number as a tensor, not float"),
        ({"loss": lambda model, batch: torch.ones(())}, "does not depend on any parameter"),
    ],
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        found(**changes)


class Endless(IterableDataset[tuple[Tensor, ...]]):
    """A stream without a length."""

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        while True:
            yield from tiny.points(203)


def test_a_stream_without_a_length_will_do() -> None:
    assert found(train_loader=DataLoader(Endless(), 16)).suggested_lr is not None
    assert found(train_loader=DataLoader(Endless(), 16), total_steps=None, quick=True).points


def test_the_rest_of_an_epoch_does_not_judge() -> None:
    """One example alone is nothing to batch normalisation, and as heavy as a whole batch."""
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
    points = TensorDataset(*tiny.points(65, seed=1).tensors)
    result = found(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        val_loader=DataLoader(points, 32),
    )
    assert result.suggested_lr is not None


@pytest.mark.parametrize(
    ("sizes", "judges"), [([4, 4, 1], 2), ([4, 4, 2], 3), ([4, 4], 2), ([1], 1)]
)
def test_how_many_batches_judge(sizes: list[int], judges: int) -> None:
    assert Batches([torch.ones(size) for size in sizes], "loader", 9).judges == judges
