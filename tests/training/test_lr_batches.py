"""Which batches judge and which train; what an endless stream over a loader gives."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tuner import find_lr
from tuner.errors import UsageError
from tuner.lr_batches import Batches, Split, cut, rows_of


def number(index: int) -> int:
    """A stream of numbers."""
    return index


def test_a_stream_goes_on_with_the_next_epoch_and_knows_how_long_one_is() -> None:
    batches = Batches([10, 11, 12], "loader", 7)
    assert [batches[k] for k in range(9)] == [10, 11, 12] * 3
    assert batches.epoch == 3
    assert Batches([10, 11, 12], "loader", 3).epoch is None


def test_an_empty_loader_is_refused() -> None:
    with pytest.raises(UsageError, match="val_loader is empty"):
        Batches([], "val_loader", 1)


def test_a_long_epoch_keeps_all_the_judges_and_goes_on() -> None:
    for split in (Split.create(None, 32, 100), Split.create(100, 32, 100)):
        assert split == Split(32)
        assert [split.training(number, index) for index in (0, 1, 70)] == [32, 33, 102]


@pytest.mark.parametrize("epoch", [8, 19, 39, 99])
def test_what_judges_is_never_trained_on_in_a_short_epoch(epoch: int) -> None:
    split = Split.create(epoch, 32, 100)
    trained = {split.training(number, index) for index in range(200)}
    assert 2 <= split.held <= epoch / 4
    assert trained == set(range(split.held, epoch))


@pytest.mark.parametrize(("epoch", "rows"), [(1, 1024), (3, 500), (7, 32)])
def test_an_epoch_of_a_few_batches_keeps_rows_of_each(epoch: int, rows: int) -> None:
    batches = torch.arange(epoch * rows).view(epoch, rows)
    split = Split.create(epoch, 32, 100, rows)
    trained = torch.cat([split.training(batches.__getitem__, index) for index in range(100)])
    judges = [split.judging(batches.__getitem__, index) for index in range(split.held)]
    assert min(map(len, judges)) >= 7
    assert len(set(trained.tolist())) == epoch * round(0.75 * rows)
    assert not set(trained.tolist()) & set(torch.cat(judges).tolist())


def test_a_few_small_or_uncut_batches_are_judged_by_what_trains() -> None:
    assert Split.create(7, 32, 100, 31) == Split(32)
    assert Split.create(7, 32, 100) == Split(32)


def test_rows_are_cut_of_every_tensor_in_a_batch() -> None:
    x, y = torch.arange(8.0).view(8, 1), torch.arange(8)
    batch = {"x": x, "pair": (y, [x])}
    assert rows_of(batch) == 8
    part = cut(batch, 0.75, 1.0)
    assert part["pair"][0].tolist() == [6, 7]
    assert part["pair"][1][0].tolist() == [[6.0], [7.0]]
    for uncut in ({"x": x, "y": y[:5]}, (x, "name"), torch.tensor(1.0), [], object()):
        assert rows_of(uncut) == 0


class Memory(nn.Module):
    """One number for each example: it learns by heart and says nothing about others."""

    def __init__(self, examples: int) -> None:
        super().__init__()
        self.values = nn.Embedding(examples, 1)
        nn.init.zeros_(self.values.weight)

    def forward(self, index: Tensor) -> Tensor:
        return self.values(index)[:, 0]


@pytest.mark.parametrize("batch_size", [10, 200])
def test_learning_by_heart_is_not_learning(batch_size: int) -> None:
    index, targets = torch.arange(400), torch.randn(400).sign()
    model = Memory(400)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    # the same order in every epoch: what is held out can be seen from outside
    loader = DataLoader(TensorDataset(index, targets), batch_size)
    seen: list[int] = []

    def loss(model: nn.Module, batch: Any) -> Tensor:
        if model.training:
            seen.extend(batch[0].tolist())
        return (model(batch[0]) - batch[1]).square().mean()

    result = find_lr(model, optimizer, loader, loss, total_steps=150)
    assert len(set(seen)) == 300  # a quarter of the batches, or of each batch, is held out
    assert result.suggested_lr is None
    assert result.flags == ["noise-dominated"]
