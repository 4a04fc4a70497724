"""Real processes that train together over gloo, and the small problem that they train on."""

from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from optimizers import schedules

WORLD = 2
PATIENCE = timedelta(seconds=120)  # for a process that died; the work itself takes seconds
STEPS = 6
ROWS = 8
SCHEDULE = {"schedule": schedules.warmup_cosine(warmup=0.4), "total_steps": STEPS}


def network() -> nn.Module:
    """Layers that do not divide evenly; of the last one, the second process holds nothing."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def batches(steps: Iterable[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets of each step."""
    for step in steps:
        source = torch.Generator().manual_seed(step)
        x, y = torch.randn(ROWS, 7, generator=source, dtype=torch.float64).split((6, 1), dim=1)
        yield x, y


def train(
    model: nn.Module,
    optimizer: Any,
    rank: int | None = None,
    steps: Iterable[int] = range(STEPS),
) -> list[float]:
    """Train on whole batches, or on the part of a rank; the gradient norms of the steps."""
    norms = []
    for batch in batches(steps):
        x, y = batch if rank is None else (tensor.chunk(WORLD)[rank] for tensor in batch)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        if optimizer.hessian_due:
            optimizer.update_hessian()
        optimizer.step()
        norms.append(optimizer.last_grad_norm)
    return norms


def together(work: Callable[[int], Any], folder: Path) -> list[Any]:
    """Run ``work(rank)`` in processes that share a gloo group; what each returned, by rank.

    ``work`` is a function of a module; it returns tensors and plain values.
    """
    mp.spawn(member, (work, folder), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


def identical(one: Any, two: Any) -> bool:
    """Whether tensors are equal bit for bit and plain values equal, at any depth."""
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(identical(one[key], two[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(identical, one, two))
    return torch.equal(one, two) if isinstance(one, Tensor) else one == two


def member(rank: int, work: Callable[[int], Any], folder: Path) -> None:
    """What one of the processes does."""
    torch.set_num_threads(1)
    address = (folder / "group").as_uri()
    dist.init_process_group("gloo", address, PATIENCE, WORLD, rank)
    torch.save(work(rank), folder / f"{rank}.pt")
    dist.destroy_process_group()
