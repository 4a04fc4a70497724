"""How results are printed: data on stdout, everything else on stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from typing import Any

import click

from tuner.cli import hints

WIDE = 10_000  # columns: nothing wraps


def print_json(value: Any) -> None:
    """Print a value as JSON; NaN and infinity become null, which every reader accepts."""
    click.echo(json.dumps(_finite(value), indent=2, allow_nan=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows on stdout: a terminal gets its own width, and no character is lost."""
    from rich.console import Console
    from rich.table import Column, Table

    folded = [Column(column, overflow="fold") for column in columns]
    table = Table(*folded, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    width = None if sys.stdout.isatty() else WIDE
    Console(width=width, markup=False, highlight=False).print(table)


def note(message: str) -> None:
    """Say something to the person in front of the screen, on stderr."""
    click.echo(hints.complete(message), err=True)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
