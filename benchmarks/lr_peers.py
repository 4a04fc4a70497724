"""Other people's LR finders, at their defaults, on a benchmark row.

torch-lr-finder and Lightning are the real packages. fastai's two rules are re-implemented from its
code (fastai/callback/schedule.py), because fastai pins an old torch: 100 batches from 1e-7 to 10,
bias-corrected exponential average of 0.98, stop at four times the lowest, first tenth and last five
points dropped.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import math
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.lr_tasks import BenchTask, make_optimizer

Suggestion = float | None
BASE_LR = 1e-3  # what optimizers are made with; every finder overwrites it


def setup(
    task: BenchTask, optimizer: str, seed: int, steps: int | None = None
) -> tuple[torch.nn.Module, torch.optim.Optimizer, DataLoader]:
    """A fresh model, its optimizer, and a shuffling loader, all from one seed."""
    torch.manual_seed(seed)
    model = task.model()
    loader = DataLoader(TensorDataset(*task.train), task.batch_size, shuffle=True, drop_last=True)
    return model, make_optimizer(optimizer, model, BASE_LR, steps), loader


def fastai_curve(task: BenchTask, optimizer: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Learning rates and smoothed losses, trimmed as fastai does."""
    model, stepper, loader = setup(task, optimizer, seed)
    lrs, losses, average, best = [], [], 0.0, math.inf
    count, total = 0, 100
    while count < total:
        for batch in loader:
            lr = 1e-7 * (10 / 1e-7) ** (count / total)
            for group in stepper.param_groups:
                group["lr"] = lr
            stepper.zero_grad()
            loss = task.loss(model, batch)
            loss.backward()
            stepper.step()
            average = 0.98 * average + 0.02 * loss.item()
            count += 1
            smooth = average / (1 - 0.98**count)
            lrs.append(lr)
            losses.append(smooth)
            best = min(best, smooth)
            if smooth > 4 * best or count >= total:
                count = total
                break
    x, y = np.array(lrs)[total // 10 : -5], np.array(losses)[total // 10 : -5]
    broken = np.flatnonzero(~np.isfinite(y))
    end = broken[0] if len(broken) else len(y)
    return x[:end], y[:end]


def fastai_valley(task: BenchTask, optimizer: str, seed: int) -> Suggestion:
    """A third into the longest falling subsequence, plus half a third."""
    lrs, losses = fastai_curve(task, optimizer, seed)
    count = len(losses)
    if count < 2:
        return None
    best = [1] * count
    longest, end = 0, 0
    for i in range(1, count):
        for j in range(i):
            if losses[i] < losses[j] and best[i] < best[j] + 1:
                best[i] = best[j] + 1
            if longest < best[i]:
                longest, end = best[i], i
    start = end - longest
    third = (end - start) / 3
    return float(lrs[start + int(third) + int(third / 2)])


def fastai_minimum(task: BenchTask, optimizer: str, seed: int) -> Suggestion:
    """A tenth of the rate of the lowest smoothed loss."""
    lrs, losses = fastai_curve(task, optimizer, seed)
    return float(lrs[np.argmin(losses)]) / 10 if len(losses) else None


def torch_lr_finder(task: BenchTask, optimizer: str, seed: int) -> Suggestion:
    """torch-lr-finder: the steepest point of 100 batches from 1e-7 to 10."""
    from torch_lr_finder import LRFinder

    model, stepper, loader = setup(task, optimizer, seed)
    finder = LRFinder(model, stepper, lambda out, y: task.loss(lambda _: out, (None, y)), "cpu")
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        finder.range_test(loader, start_lr=1e-7, end_lr=10, num_iter=100)
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with contextlib.redirect_stdout(io.StringIO()):
        answer = finder.plot()
    plt.close("all")
    return float(answer[1]) if isinstance(answer, tuple) and answer[1] else None


def lightning(task: BenchTask, optimizer: str, seed: int) -> Suggestion:
    """Lightning's `Tuner.lr_find`, 100 batches from 1e-8 to 1."""
    import tempfile

    import lightning as lit
    from lightning.pytorch.tuner import Tuner

    model, _, loader = setup(task, optimizer, seed)

    class Module(lit.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.lr = model, BASE_LR

        def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
            return task.loss(self.model, batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return make_optimizer(optimizer, self.model, self.lr, None)

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lit.Trainer(
            accelerator="cpu", max_epochs=20, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        )  # fmt: skip
        with contextlib.redirect_stderr(io.StringIO()):
            found = Tuner(trainer).lr_find(Module(), train_dataloaders=loader)
    suggestion = None if found is None else found.suggestion()
    return None if suggestion is None else float(suggestion)


PEERS: dict[str, Callable[[BenchTask, str, int], Suggestion]] = {
    "fastai valley (re-implemented)": fastai_valley,
    "fastai minimum/10 (re-implemented)": fastai_minimum,
    "torch-lr-finder 0.2.2": torch_lr_finder,
    "Lightning Tuner.lr_find": lightning,
}
REQUIRES = {"torch-lr-finder 0.2.2": "torch_lr_finder", "Lightning Tuner.lr_find": "lightning"}


def installed() -> dict[str, Callable[[BenchTask, str, int], Suggestion]]:
    """The peers that can run here."""
    for name in ("lightning", "lightning.pytorch", "optimizers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return {
        name: peer
        for name, peer in PEERS.items()
        if name not in REQUIRES or importlib.util.find_spec(REQUIRES[name]) is not None
    }
