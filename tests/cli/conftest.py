"""Running the command line inside the test's process, in a folder of its own."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tuner.cli.main import run


@dataclass(frozen=True)
class Result:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """All of stdout as strict JSON."""
        return json.loads(self.out, parse_constant=pytest.fail)


Tuner = Callable[..., Result]


@pytest.fixture
def tuner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Tuner:
    """`tuner("db", "check")` runs the command; nothing of it outlives the test."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Result:
        code = run(arguments)
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return call
