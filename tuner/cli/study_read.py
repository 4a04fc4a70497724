"""The commands that look at studies: list, report, export, code."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tuner.cli.context import Context, pass_context
from tuner.cli.options import json_option
from tuner.cli.render import print_json, print_table
from tuner.errors import UsageError

if TYPE_CHECKING:
    from tuner.records import Study
    from tuner.store.base import Store


def shown_state(store: Store, study: Study) -> str:
    """The state of a study; "interrupted" when its coordinator died without a word."""
    from tuner.lease import is_alive

    alive = is_alive(store.get_lease(study.name), datetime.now(UTC))
    return "interrupted" if study.state == "running" and not alive else study.state


@click.command("list")
@json_option
@pass_context
def list_studies(context: Context, as_json: bool) -> None:
    """List all studies of the database.

    \b
    Example:
      tuner study list --json
    """
    with closing(context.open_store()) as store:
        rows = [
            {
                "name": s.name,
                "state": shown_state(store, s),
                "task": s.spec.get("study", s.spec).get("task"),
                "trials": len(store.trials(s.name)),
                "created_at": s.created_at.isoformat(),
                "answer": s.answer,
            }
            for s in store.list_studies()
        ]
    if as_json:
        print_json(rows)
    else:
        columns = ("name", "state", "trials", "created_at", "answer")
        for row in rows:  # what comes after the colon is for `study show`
            row["answer"] = (row["answer"] or "").split(": ")[0]
        print_table(columns, [[row[c] for c in columns] for row in rows])


@click.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The HTML file to write.")
@pass_context
def report(context: Context, names: tuple[str, ...], output: Path | None) -> None:
    """Write the report of study NAME: one HTML file with tables, plots and caveats.

    Several studies are pooled as `tuner study compare` does.

    \b
    Examples:
      tuner study report digits -o digits.html
      tuner study report digits tabular charlm
    """
    from tuner.service import comparison_of, make_report

    path = output or context.home.reports / f"{'+'.join(names)}.html"
    try:
        with closing(context.open_store()) as store:
            if len(names) == 1:
                made = make_report(names[0], store, path, comparison_of(names[0], store))
            else:
                from tuner.compare.pooled_report import write_pooled_report
                from tuner.findings import Rows, pool_studies

                pooled = pool_studies([Rows(name, store) for name in names])
                made = write_pooled_report(path, pooled)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    click.echo(made)


@click.command()
@click.argument("name")
@click.option(
    "--format", "kind", type=click.Choice(["csv", "json"]), default="csv", show_default=True
)
@json_option
@pass_context
def export(context: Context, name: str, kind: str, as_json: bool) -> None:
    """Print every trial of study NAME as CSV or JSON.

    \b
    Examples:
      tuner study export digits > digits.csv
      tuner study export digits --json
    """
    from tuner.cli.trial import as_record
    from tuner.compare.report import trials_csv

    with closing(context.open_store()) as store:
        trials = store.trials(name)
    if as_json or kind == "json":
        print_json([as_record(t) for t in trials])
    else:
        click.echo(trials_csv(trials), nl=False)


@click.command()
@click.argument("name")
@click.option("--arm", metavar="ARM", help="Another arm than the one that leads.")
@json_option
@pass_context
def code(context: Context, name: str, arm: str | None, as_json: bool) -> None:
    """Print the Python that trains with the settings that study NAME found.

    The number of steps is that of the trials: a learning rate belongs to the length of a run.

    \b
    Examples:
      tuner study code digits
      tuner study code digits --arm lion-warmup_cosine
      tuner study code digits --json
    """
    from tuner.compare.wording import mean_with_interval
    from tuner.findings import Rows
    from tuner.snippet import python_of

    with closing(context.open_store()) as store:
        rows = Rows(name, store)
    found, (chosen, run) = rows.comparison, rows.chosen(arm)
    score = mean_with_interval(chosen, round(100 * (1 - found.alpha)))
    title = f"study {name}: {chosen.name}, {chosen.verdict}; {found.metric} {score}"
    if as_json:
        configuration = run.configuration.model_dump()
        print_json({"arm": chosen.name, "steps": run.steps, "configuration": configuration})
    else:
        click.echo(python_of(run.configuration, run.steps, title))
