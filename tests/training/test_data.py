"""Which examples come when, and that the fast ways to fetch them give the same batches."""

import copy
from itertools import islice

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset, Subset, TensorDataset, default_collate

from tuner.data import fetcher, fingerprint, order, stream, to_device


@given(
    size=st.integers(1, 40), data=st.data(), seed=st.integers(0, 2**40), start=st.integers(0, 30)
)
@settings(max_examples=50, deadline=None)
def test_every_epoch_has_every_example_once(
    size: int, data: st.DataObject, seed: int, start: int
) -> None:
    batch_size = data.draw(st.integers(1, size))
    epochs = 3
    batches = list(islice(stream(size, batch_size, seed), -(-epochs * size // batch_size)))
    assert {len(batch) for batch in batches} == {batch_size}
    indices = torch.cat(batches)
    for epoch in range(epochs):
        part = indices[epoch * size : (epoch + 1) * size]
        assert part.tolist() == order(size, seed, epoch).tolist()
        assert sorted(part.tolist()) == list(range(size))
    resumed = next(stream(size, batch_size, seed, start))
    whole = next(islice(stream(size, batch_size, seed), start, None))
    assert resumed.tolist() == whole.tolist()


def test_the_order_depends_on_seed_and_epoch() -> None:
    orders = [order(50, seed, epoch).tolist() for seed in range(3) for epoch in range(3)]
    assert len({tuple(each) for each in orders}) == 9


class Itemwise(Dataset):
    """The same data, but only one example at a time."""

    def __init__(self, data: Dataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        return self.data[index]


class Shifted(TensorDataset):
    """A user's subclass that must not be read past."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        return tuple(tensor + 1 for tensor in super().__getitem__(index))


POINTS = tiny.points(30)
DATASETS = {
    "tensors": POINTS,
    "subset of tensors": Subset(POINTS, range(5, 25)),
    "subset of subset": Subset(Subset(POINTS, [3, 1, 4, 15, 9, 2, 6]), [6, 0, 2, 5]),
    "subclass": Shifted(*POINTS.tensors),
    "subset of subclass": Subset(Shifted(*POINTS.tensors), [7, 8, 9, 1]),
    "itemwise": Itemwise(POINTS),
    "subset of itemwise": Subset(Itemwise(POINTS), [7, 8, 9, 1]),
    "list": [(torch.tensor([float(i)]), i) for i in range(10)],
}


@pytest.mark.parametrize("name", DATASETS)
def test_fetching_agrees_with_collating_examples(name: str) -> None:
    dataset = DATASETS[name]
    indices = torch.tensor([2, 0, 3])
    expected = default_collate([dataset[index] for index in indices.tolist()])
    batch = fetcher(dataset)(indices)
    assert type(batch) is type(expected)
    for got, wanted in zip(batch, expected, strict=True):
        assert torch.equal(got, wanted)


def test_a_collate_function_gets_the_examples() -> None:
    batch = fetcher(POINTS, collate=lambda examples: [len(examples), examples[1][0].shape])
    assert batch(torch.tensor([1, 5])) == [2, torch.Size([8])]


def test_batches_keep_their_structure_on_the_way_to_a_device() -> None:
    class Own:
        def to(self, device: torch.device, non_blocking: bool) -> str:
            return f"moved to {device}"

    batch = {"x": (torch.ones(2), [torch.zeros(1), "text"]), "own": Own()}
    moved = to_device(batch, torch.device("meta"))
    assert moved["x"][0].device.type == moved["x"][1][0].device.type == "meta"
    assert type(moved["x"]) is tuple
    assert moved["x"][1][1] == "text"
    assert moved["own"] == "moved to meta"


class Objects(Dataset):
    """Examples that are not tensors only."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, object]:
        return {"x": np.full(2, index), "name": self.name, "other": object()}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (TensorDataset(torch.zeros(9)), TensorDataset(torch.eye(9)[0])),
        (TensorDataset(torch.zeros(9)), TensorDataset(torch.zeros(8))),
        (TensorDataset(torch.zeros(9)), TensorDataset(torch.zeros(9, dtype=torch.bfloat16))),
        (Subset(TensorDataset(torch.eye(3)), [0, 1]), Subset(TensorDataset(torch.eye(3)), [0, 2])),
        (Objects("a"), Objects("b")),
    ],
)
def test_a_fingerprint_tells_data_apart(one: Dataset, other: Dataset) -> None:
    assert fingerprint(one) == fingerprint(copy.deepcopy(one))
    assert fingerprint(one) != fingerprint(other)
