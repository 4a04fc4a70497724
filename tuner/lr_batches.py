"""Batches of a loader by their number, the same ones every time, and which of them judge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tuner.errors import UsageError

# Batches are kept in memory up to this size; what does not fit is read again by every short run.
CACHE_BYTES = 2**28
# What a short epoch keeps from training, and how many batches that has to be.
HELD_SHARE, FEWEST_HELD = 0.25, 2
# An epoch of fewer batches keeps rows of each: so many judges of at least so many rows.
MOST_PIECES, FEWEST_ROWS = 8, 8


@dataclass(frozen=True)
class Split:
    """Which batches of a stream judge and which train, by their numbers.

    The first `held` batches judge, those after them train. `epoch` is the length after which
    training starts again behind the held-out batches; with None it goes on into the epochs that
    follow. With `pieces`, every batch of the epoch trains with its first rows, and its last ones
    are so many judges.
    """

    held: int
    epoch: int | None = None
    pieces: int = 0

    @classmethod
    def create(cls, epoch: int | None, most: int, needed: int, rows: int = 0) -> Split:
        """Hold out `most` batches, or a quarter of an epoch that is shorter than `needed`.

        An epoch of a few batches has none to spare, but rows of each if these are many; `rows` is
        their number, 0 where a batch cannot be cut. Else the judges are trained on, too.
        """
        if epoch is None or epoch >= needed:
            return cls(most)
        held = min(most, int(HELD_SHARE * epoch))
        if held >= FEWEST_HELD:
            return cls(held, epoch)
        pieces = min(MOST_PIECES, int(HELD_SHARE * rows) // FEWEST_ROWS)
        return cls(min(most, pieces * epoch), epoch, pieces) if pieces else cls(most)

    def training(self, get: Callable[[int], Any], index: int) -> Any:
        """What the training step `index` sees of the stream `get`."""
        if self.pieces and self.epoch:
            return cut(get(index % self.epoch), 0.0, 1 - HELD_SHARE)
        spare = None if self.epoch is None else self.epoch - self.held
        return get(self.held + (index if spare is None else index % spare))

    def judging(self, get: Callable[[int], Any], index: int) -> Any:
        """The judge `index` of the stream `get`."""
        if not self.pieces:
            return get(index)
        number, piece = divmod(index, self.pieces)
        share = HELD_SHARE / self.pieces
        start = 1 - HELD_SHARE + piece * share
        return cut(get(number), start, start + share)


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


def length_of(loader: Iterable[Any]) -> int | None:
    """Batches of an epoch as the loader says, None if it does not: not every one knows."""
    try:
        return len(loader) if isinstance(loader, Sized) else None
    except TypeError:  # a DataLoader of an iterable data set
        return None


def size_of(batch: Any) -> int:
    """Bytes of the tensors in a batch, at least 1."""
    if isinstance(batch, Tensor):
        return max(1, batch.numel() * batch.element_size())
    if isinstance(batch, Mapping):
        return 1 + sum(map(size_of, batch.values()))
    if isinstance(batch, (list, tuple)):
        return 1 + sum(map(size_of, batch))
    return 1


def rows_of(batch: Any) -> int:
    """Length of the first dimension of all tensors in a batch; 0 without a common one."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else 0
    parts = list(batch.values()) if isinstance(batch, dict) else batch
    if not isinstance(parts, (list, tuple)):
        return 0
    lengths = {rows_of(part) for part in parts}
    return lengths.pop() if len(lengths) == 1 else 0


def cut(batch: Any, start: float, end: float) -> Any:
    """Rows from one share of a batch to another, of every tensor in it; see `rows_of`."""
    if isinstance(batch, Tensor):
        return batch[round(start * len(batch)) : round(end * len(batch))]
    if isinstance(batch, dict):
        return {key: cut(value, start, end) for key, value in batch.items()}
    parts = (cut(part, start, end) for part in batch)
    return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
