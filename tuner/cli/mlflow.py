"""`tuner mlflow`: the dashboard, and filling gaps in it."""

from __future__ import annotations

import os
from contextlib import closing

import click

from tuner.cli.context import Context, pass_context
from tuner.cli.lazy import LazyGroup
from tuner.cli.options import json_option
from tuner.cli.render import print_json
from tuner.errors import UsageError

TABLE = {"ui": "tuner.cli.mlflow:ui", "sync": "tuner.cli.mlflow:sync"}


@click.group(cls=LazyGroup, table=TABLE)
def mlflow() -> None:
    """Open the MLflow dashboard, or rebuild it from the database.

    \b
    Examples:
      tuner mlflow ui
      tuner mlflow sync digits
    """


@click.command()
@click.argument("name")
@json_option
@pass_context
def sync(context: Context, name: str, as_json: bool) -> None:
    """Send what MLflow lacks of study NAME.

    Nothing is sent twice. For a tracking server that was down during the study, or that lost its
    data.

    \b
    Example:
      tuner mlflow sync digits
    """
    from tuner.service import sync_mlflow

    with closing(context.open_store()) as store:
        report = sync_mlflow(name, store, _uri(context))
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        click.echo(
            f"{report.created} runs created, {report.completed} completed, "
            f"{report.unchanged} unchanged"
        )


@click.command()
@click.option("--print", "only_print", is_flag=True, help="Print the command, do not run it.")
@pass_context
def ui(context: Context, only_print: bool) -> None:
    """Open the dashboard.

    For a local store this starts a server until Ctrl-C.

    \b
    Examples:
      tuner mlflow ui
      tuner mlflow ui --print
    """
    from tuner.store.mlflow import ui_command

    command = ui_command(_uri(context))
    if only_print:
        click.echo(command)
    else:
        os.execv("/bin/sh", ["sh", "-c", command])


def _uri(context: Context) -> str:
    if context.mlflow_uri is None:
        raise UsageError("MLflow is off (--mlflow-uri none); give a URI or leave it out")
    return context.mlflow_uri
