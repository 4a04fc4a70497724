"""Batches of a loader by their number, the same ones every time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from tuner.errors import UsageError

# Batches are kept in memory up to this size; what does not fit is read again by every short run.
CACHE_BYTES = 2**28


class Batches:
    """`self[number]` of an endless stream over a loader, epoch after epoch.

    Numbers are asked for in rising order; `restart` goes back. The first `keep` batches are read at
    once, before any random number is used for training, so that short runs do not differ.
    """

    def __init__(self, loader: Iterable[Any], name: str, keep: int) -> None:
        self._loader, self._name = loader, name
        self._cache: list[Any] = []
        self._live: Iterator[Any] | None = None
        self._position = 0
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

    def restart(self) -> None:
        """The next batch that is not in memory is read from the loader's beginning."""
        self._live = None

    def _endless(self) -> Iterator[Any]:
        while True:
            empty = True
            for batch in self._loader:
                empty = False
                yield batch
            if empty:
                raise UsageError(f"{self._name} is empty")


def size_of(batch: Any) -> int:
    """Bytes of the tensors in a batch, at least 1."""
    if isinstance(batch, Tensor):
        return max(1, batch.numel() * batch.element_size())
    if isinstance(batch, Mapping):
        return 1 + sum(map(size_of, batch.values()))
    if isinstance(batch, (list, tuple)):
        return 1 + sum(map(size_of, batch))
    return 1
