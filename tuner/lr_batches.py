"""Batches of a loader by their number, the same ones every time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tuner.errors import UsageError

# Batches are kept in memory up to this size; what does not fit is read again by every short run.
CACHE_BYTES = 2**28
# What a short epoch keeps from training, and how many batches that has to be.
HELD_SHARE, FEWEST_HELD = 0.25, 2


@dataclass(frozen=True)
class Split:
    """The first `held` batches judge, those after them train: numbers of batches in a stream.

    `epoch` is the length after which training starts again behind the held-out batches; with None
    it goes on into the epochs that follow.
    """

    held: int
    epoch: int | None = None

    @classmethod
    def create(cls, epoch: int | None, most: int, needed: int) -> Split:
        """Hold out `most` batches, or a quarter of an epoch that is shorter than `needed`.

        An epoch of a few batches has none to spare: there the judges are trained on, too.
        """
        if epoch is None or epoch >= needed:
            return cls(most)
        held = min(most, int(HELD_SHARE * epoch))
        return cls(held, epoch) if held >= FEWEST_HELD else cls(most)

    def training(self, index: int) -> int:
        """The number of a training batch."""
        return self.held + (index if self.epoch is None else index % (self.epoch - self.held))


class Batches:
    """`self[number]` of an endless stream over a loader, epoch after epoch.

    Numbers are asked for in rising order; `restart` goes back. The first `keep` batches are read at
    once, before any random number is used for training, so that short runs do not differ. `epoch`
    is the number of batches after which the loader began again, None as long as it did not.
    """

    def __init__(self, loader: Iterable[Any], name: str, keep: int) -> None:
        self._loader, self._name = loader, name
        self._cache: list[Any] = []
        self._live: Iterator[Any] | None = None
        self._position = 0
        self.epoch: int | None = None
        stream, used = self._endless(), 0
        while len(self._cache) < keep and used <= CACHE_BYTES:
            self._cache.append(next(stream))
            used += size_of(self._cache[-1])

    def __getitem__(self, number: int) -> Any:
        if number < len(self._cache):
            return self._cache[number]
        if self._live is None or number < self._position:
            self._live, self._position = self._endless(), 0
        while True:
            batch = next(self._live)
            self._position += 1
            if self._position > number:
                return batch

    @property
    def judges(self) -> int | None:
        """Batches of an epoch, without a short rest at its end: it would count as a whole one."""
        if self.epoch is None or self.epoch == 1:
            return self.epoch
        short = 2 * size_of(self[self.epoch - 1]) < size_of(self[0])
        return self.epoch - short

    def restart(self) -> None:
        """The next batch that is not in memory is read from the loader's beginning."""
        self._live = None

    def _endless(self) -> Iterator[Any]:
        while True:
            count = 0
            for batch in self._loader:
                count += 1
                yield batch
            if count == 0:
                raise UsageError(f"{self._name} is empty")
            self.epoch = self.epoch or count


def size_of(batch: Any) -> int:
    """Bytes of the tensors in a batch, at least 1."""
    if isinstance(batch, Tensor):
        return max(1, batch.numel() * batch.element_size())
    if isinstance(batch, Mapping):
        return 1 + sum(map(size_of, batch.values()))
    if isinstance(batch, (list, tuple)):
        return 1 + sum(map(size_of, batch))
    return 1
