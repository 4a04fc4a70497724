"""Tasks that fail, each in its own way; `step` counts calls of the loss in train mode."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import tiny
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset, TensorDataset

from tuner import Task


def at_step(step: int, action: Callable[[Tensor], Tensor]) -> Task:
    """The tiny task, whose training loss goes through `action` from a step on."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny.network()
            self.calls = 0

        def forward(self, inputs: Tensor) -> Tensor:
            self.calls += self.training
            return self.inner(inputs)

    def loss(model: nn.Module, batch: tiny.Batch) -> Tensor:
        value = tiny.cross_entropy(model, batch)
        return action(value) if model.training and model.calls >= step else value

    return tiny.build(model=Counting, loss=loss)


def nan_loss() -> Task:
    return at_step(5, lambda loss: loss * float("nan"))


def infinite_gradients() -> Task:
    """The loss stays finite while its gradient is not."""

    def action(loss: Tensor) -> Tensor:
        zero = loss - loss.detach()
        return loss.detach() + torch.sqrt(zero)

    return at_step(5, action)


def _spoilt(data: TensorDataset) -> TensorDataset:
    """One example of many is not a number."""
    inputs, labels = data.tensors
    inputs[7] = float("nan")
    return TensorDataset(inputs, labels)


def nan_in_training_data() -> Task:
    return tiny.build(train=_spoilt(tiny.points(203)))


def nan_in_validation_data() -> Task:
    return tiny.build(val=_spoilt(tiny.points(57, seed=1)))


def nan_metric() -> Task:
    return tiny.build(metrics=lambda model, batch: {"acc": float("nan")})


def build_raises() -> Task:
    raise FileNotFoundError("no such data: /data/train.npy")


def model_raises() -> Task:
    return tiny.build(model=lambda: nn.Linear(8, "two"))


def raise_key_error(loss: Tensor) -> Tensor:
    raise KeyError("weights")


def loss_raises() -> Task:
    return at_step(5, raise_key_error)


def loss_is_a_vector() -> Task:
    return at_step(1, lambda loss: loss.expand(3))


def one_model_for_all() -> Task:
    network = tiny.network()
    return tiny.build(model=lambda: network)


def one_layer_for_all() -> Task:
    layer = nn.Linear(8, 8)
    return tiny.build(model=lambda: nn.Sequential(layer, nn.Linear(8, 2)))


def one_frozen_layer_for_all() -> Task:
    """Nothing wrong: what is not trained may be shared."""
    layer = nn.Linear(8, 8).requires_grad_(False)
    return tiny.build(model=lambda: nn.Sequential(layer, nn.Linear(8, 2)))


def sets_the_seed() -> Task:
    def model() -> nn.Module:
        torch.manual_seed(0)
        return tiny.network()

    return tiny.build(model=model)


def lazy() -> Task:
    return tiny.build(model=lambda: nn.LazyLinear(2))


def frozen() -> Task:
    return tiny.build(model=lambda: tiny.network().requires_grad_(False))


def batches_without_weight() -> Task:
    return tiny.build(batch_size_of=lambda batch: 0)


def evaluate_returns_a_number() -> Task:
    return tiny.build(evaluate=lambda model, batches: 0.5)


def metric_without_a_name() -> Task:
    return tiny.build(metrics=lambda model, batch: {1: 0.5})


def metric_in_words() -> Task:
    return tiny.build(metrics=lambda model, batch: {"acc": "high"})


def metrics_raise() -> Task:
    return tiny.build(metrics=lambda model, batch: {"acc": 1 / 0})


def stops_python() -> Task:
    return at_step(3, lambda loss: sys.exit(3))


def not_a_task() -> dict[str, int]:
    return {"model": 1}


def iterable_data() -> Task:
    return tiny.build(train=iter([1, 2, 3]))


class Endless(IterableDataset[int]):
    """Says how long it is, as many do for a progress bar."""

    def __iter__(self) -> Iterator[int]:
        return iter([1, 2, 3])

    def __len__(self) -> int:
        return 3


def iterable_data_with_a_length() -> Task:
    return tiny.build(train=Endless())


def out_of_memory() -> Task:
    return at_step(3, lambda loss: loss + torch.empty(1 << 50).sum())


def segfault() -> Task:
    return at_step(3, lambda loss: os.kill(os.getpid(), signal.SIGSEGV) or loss)


def late_segfault() -> Task:
    """After the few steps of a check."""
    return at_step(6, lambda loss: os.kill(os.getpid(), signal.SIGSEGV) or loss)


def sleepy() -> Task:
    """Long enough to be interrupted, and quick to notice it."""
    return at_step(1, lambda loss: time.sleep(0.01) or loss)


def deaf() -> Task:
    """Never reaches the end of its third step."""
    return at_step(3, lambda loss: time.sleep(600) or loss)


def busy() -> Task:
    """Computes in Python without an end, holding the interpreter's lock as much as it can."""

    def action(loss: Tensor) -> Tensor:
        while True:
            sum(range(1000))

    return at_step(3, action)


def spawning() -> Task:
    """Starts a process of its own, notes its id in $CHILD_LOG, and hangs."""

    def action(loss: Tensor) -> Tensor:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path(os.environ["CHILD_LOG"]).write_text(str(child.pid))
        time.sleep(600)
        return loss

    return at_step(1, action)


def chatty() -> Task:
    """Prints in every way there is, in lines that look like the protocol's."""

    def action(loss: Tensor) -> Tensor:
        print('{"slot": 0, "outcome": null}')  # noqa: T201
        print("progress", file=sys.stderr)  # noqa: T201
        os.write(1, b"raw bytes \xff\n")
        return loss

    return at_step(1, action)


def memory_for_six() -> Task:
    """Training with more than six examples at once runs out of memory."""

    def loss(model: nn.Module, batch: tiny.Batch) -> Tensor:
        if model.training and len(batch[0]) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        return tiny.cross_entropy(model, batch)

    return tiny.build(loss=loss)


def until_repaired() -> Task:
    """Fails after the check until the file $REPAIRED exists."""

    def action(loss: Tensor) -> Tensor:
        if not Path(os.environ["REPAIRED"]).exists():
            raise RuntimeError("not yet repaired")
        return loss

    return at_step(5, action)
