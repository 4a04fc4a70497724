"""`tuner db`: the study database's schema."""

from __future__ import annotations

import click

from tuner.cli.context import Context, pass_context
from tuner.cli.lazy import LazyGroup
from tuner.cli.options import json_option
from tuner.cli.render import note, print_json
from tuner.errors import BackendError
from tuner.paths import mask_password

TABLE = {"upgrade": "tuner.cli.db:upgrade", "check": "tuner.cli.db:check"}


@click.group(cls=LazyGroup, table=TABLE)
def db() -> None:
    """Create, upgrade and check the study database.

    \b
    Examples:
      tuner db upgrade
      tuner --storage postgresql://tuner@db.example.org/tuner db check
    """


@click.command()
@json_option
@pass_context
def upgrade(context: Context, as_json: bool) -> None:
    """Create the tables, or bring them to this version.

    `tuner study start` does it too; this is for administrators and deployment scripts. It is safe
    to run many times and from many machines at once.

    \b
    Example:
      tuner db upgrade
    """
    from tuner.store.schema import upgrade

    report = upgrade(context.storage_url)
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        click.echo(f"{mask_password(context.storage_url)}: at revision {report.revision}")


@click.command()
@json_option
@pass_context
def check(context: Context, as_json: bool) -> None:
    """Say whether the database is there and up to date.

    Changes nothing. Ends with exit code 4 when it cannot be used.

    \b
    Example:
      tuner db check --json
    """
    from tuner.store.schema import check

    report = check(context.storage_url)
    if as_json:
        print_json({**report.model_dump(mode="json"), "ok": report.ok})
    else:
        click.echo(f"database  {mask_password(context.storage_url)}")
        click.echo(f"revision  {report.revision or 'none'} (this version: {report.head})")
    for difference in report.drift:
        note(f"differs: {difference}")
    if not report.ok:
        raise BackendError("the database is not at this version; run `tuner db upgrade`")
