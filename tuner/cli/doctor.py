"""`tuner doctor`: is everything in order?"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from tuner.cli.context import Context, pass_context
from tuner.cli.options import json_option
from tuner.cli.render import print_json
from tuner.errors import BackendError, TunerError
from tuner.paths import mask_password

PACKAGES = ("optimizer-tuner", "torch", "optuna", "mlflow", "sqlalchemy")


@dataclass(frozen=True)
class Finding:
    """One line of the examination."""

    check: str
    ok: bool
    detail: str


@click.command()
@click.option("--task", metavar="MODULE:FUNCTION", help="Also build this task.")
@json_option
@pass_context
def doctor(context: Context, task: str | None, as_json: bool) -> None:
    """Check versions, database, MLflow, devices and a task.

    Changes nothing. Ends with the exit code of the first problem.

    \b
    Examples:
      tuner doctor
      tuner doctor --task studies.digits:build
    """
    checks: dict[str, Callable[[], str]] = {
        "versions": _versions,
        "database": lambda: _database(context),
        "mlflow": lambda: _mlflow(context),
        "devices": _devices,
    }
    if task:
        checks["task"] = lambda: _task(task)
    problems: list[TunerError] = []
    findings = [_examine(name, check, problems) for name, check in checks.items()]
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            click.echo(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.check:9} {finding.detail}")
    if problems:
        raise problems[0]


def _examine(name: str, check: Callable[[], str], problems: list[TunerError]) -> Finding:
    """Run one check; its failure is a finding, and kept for the exit code."""
    try:
        return Finding(name, True, mask_password(check()))
    except TunerError as error:
        problems.append(error)
        return Finding(name, False, mask_password(str(error)))


def _versions() -> str:
    installed = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    return f"python {platform.python_version()}, {installed}"


def _database(context: Context) -> str:
    from tuner.store.schema import check

    if context.storage_url == context.home.storage_url and not _exists(context.storage_url):
        return f"{context.storage_url}: not there yet; the first study makes it"
    report = check(context.storage_url)
    if not report.ok:
        raise BackendError(
            f"{report.location}: at revision {report.revision}, not {report.head}; "
            "run `tuner db upgrade`"
        )
    return f"{context.storage_url}: at revision {report.revision}"


def _mlflow(context: Context) -> str:
    if context.mlflow_uri is None:
        return "off"
    if context.mlflow_uri == context.home.mlflow_uri and not _exists(context.mlflow_uri):
        return f"{context.mlflow_uri}: not there yet; the first study makes it"
    from tuner.store.mlflow import ping

    ping(context.mlflow_uri)
    return f"{context.mlflow_uri}: answers"


def _devices() -> str:
    from tuner.executors.devices import plan_slots

    return ", ".join(slot.device for slot in plan_slots(None))


def _task(path: str) -> str:
    from tuner.task import load_task

    task = load_task(path, (str(Path.cwd()),))
    return f"{path}: {_size(task.train)} training and {_size(task.val)} validation examples"


def _size(data: Any) -> int:
    return len(data)


def _exists(sqlite_url: str) -> bool:
    return Path(sqlite_url.removeprefix("sqlite:///")).exists()
