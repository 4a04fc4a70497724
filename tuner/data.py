"""Batches of map-style data sets: which examples, in which order, fetched how.

Training reads an endless stream: a fresh permutation for every epoch, cut into batches without
regard to where an epoch ends. So every optimizer step has exactly the effective batch size, no step
is noisier than the others, and batch normalisation never meets a batch of one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Subset, TensorDataset, default_collate

Fetch = Callable[[torch.Tensor], Any]


def order(size: int, seed: int, epoch: int) -> torch.Tensor:
    """The permutation of one epoch; it depends on the arguments only. Shape (size,)."""
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(size))


def stream(size: int, batch_size: int, seed: int, start: int = 0) -> Iterator[torch.Tensor]:
    """Index tensors of shape (batch_size,), without end, from batch number `start` on."""
    epoch, offset = divmod(start * batch_size, size)
    rest = order(size, seed, epoch)[offset:]
    while True:
        while len(rest) < batch_size:
            epoch += 1
            rest = torch.cat([rest, order(size, seed, epoch)])
        yield rest[:batch_size]
        rest = rest[batch_size:]


def fetcher(dataset: Dataset[Any], collate: Callable[[list[Any]], Any] | None = None) -> Fetch:
    """A function from indices to a batch: one indexing operation where the data set allows it."""
    if collate is None:
        columns = _columns(dataset)
        if columns is not None:
            tensors, subset = columns
            if subset is None:
                return lambda indices: [tensor[indices] for tensor in tensors]
            return lambda indices: [tensor[subset[indices]] for tensor in tensors]
    return _itemwise(dataset, collate or default_collate)


def _itemwise(dataset: Any, collate: Callable[[list[Any]], Any]) -> Fetch:
    if callable(getattr(dataset, "__getitems__", None)):
        return lambda indices: collate(dataset.__getitems__(indices.tolist()))
    return lambda indices: collate([dataset[index] for index in indices.tolist()])


def _columns(dataset: Any) -> tuple[Sequence[torch.Tensor], torch.Tensor | None] | None:
    """Tensors below a TensorDataset or (nested) Subsets of one; exact types, no user's subclass."""
    if type(dataset) is TensorDataset:
        return dataset.tensors, None
    if type(dataset) is Subset:
        below = _columns(dataset.dataset)
        if below is not None:
            tensors, subset = below
            indices = torch.as_tensor(dataset.indices, dtype=torch.int64)
            return tensors, indices if subset is None else subset[indices]
    return None


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors on a device; lists, tuples, dicts and `.to()` objects."""
    if hasattr(batch, "to"):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def fingerprint(dataset: Any) -> str:
    """A short hash that tells versions of a data set apart.

    Over all of it when it lies in tensors, else over its size and 64 evenly spaced examples.
    """
    digest = hashlib.sha256(str(len(dataset)).encode())
    columns = _columns(dataset)
    if columns is not None:
        indices = torch.arange(len(dataset))
        _absorb(digest, fetcher(dataset)(indices))
    else:
        for index in np.linspace(0, len(dataset) - 1, num=min(64, len(dataset)), dtype=int):
            _absorb(digest, dataset[int(index)])
    return digest.hexdigest()[:16]


def _absorb(digest: hashlib._Hash, value: Any) -> None:
    """Add tensors, arrays, containers and plain values; other objects by their type only."""
    if isinstance(value, torch.Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    elif isinstance(value, np.ndarray):
        digest.update(f"{value.dtype}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, dict):
        _absorb(digest, list(value.items()))
    elif isinstance(value, list | tuple):
        for item in value:
            _absorb(digest, item)
    elif isinstance(value, str | bytes | int | float | bool | None):
        digest.update(repr(value).encode())
    else:
        digest.update(type(value).__name__.encode())
