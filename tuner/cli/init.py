"""`tuner init`: a task and a study to start from."""

from __future__ import annotations

from pathlib import Path

import click

from tuner.cli.render import note
from tuner.errors import UsageError

TASK = """\
import torch
from torch import nn
from torch.utils.data import TensorDataset

from tuner import Task


def build():
    x = torch.randn(2500, 8, generator=torch.Generator().manual_seed(0))
    y = x.argmax(1)  # which of eight numbers is the largest?
    return Task(
        model=lambda: nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 8)),
        train=TensorDataset(x[:2000], y[:2000]),
        val=TensorDataset(x[2000:], y[2000:]),
        loss=lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
        metrics=lambda model, batch: {
            "acc": (model(batch[0]).argmax(1) == batch[1]).float().mean()
        },
    )
"""

STUDY = """\
[study]
task = "NAME:build"
metric = "acc"
direction = "maximize"
preset = "quick"             # quick | standard | thorough

[[arms]]
optimizer = "adamw"
schedule = "warmup_cosine"
clip_norm = 1.0

[[arms]]
optimizer = "sgd"
schedule = "cosine"
optimizer_args = { momentum = 0.9 }
"""


@click.command()
@click.argument("name", default="mytask")
def init(name: str) -> None:
    """Write a task and a study of it, which run at once.

    The files are NAME.py and NAME.toml. Put your own model, data and loss into them. Files that
    exist are never touched.

    \b
    Examples:
      tuner init
      tuner init speech && tuner study start speech.toml
    """
    if not name.isidentifier():
        raise UsageError(f"NAME = {name!r}: allowed: a name that Python can import")
    files = {
        Path(f"{name}.py"): TASK,
        Path(f"{name}.toml"): STUDY.replace("NAME", name),
    }
    for path in files:
        if path.exists():
            raise UsageError(f"{path} exists already; give another NAME")
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
        click.echo(path)
    note(f"next: tuner study start {name}.toml")
