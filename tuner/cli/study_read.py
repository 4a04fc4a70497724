"""The commands that look at studies: list, show, compare, report, export."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
        print_table(columns, [[row[c] for c in columns] for row in rows])


def _spec_of(study: Study, model: Any) -> Any:
    if "arms" not in study.spec:
        raise UsageError(f"{study.name!r} is a range test; see `tuner trial list {study.name}`")
    return model.model_validate(study.spec)


@click.command()
@click.argument("name")
@json_option
@pass_context
def compare(context: Context, name: str, as_json: bool) -> None:
    """Compare the arms of study NAME on fresh seeds: which is best, and how sure is that?

    \b
    Examples:
      tuner study compare digits
      tuner study compare digits --json
    """
    from tuner.cli.study_run import print_comparison
    from tuner.compare.verdicts import comparison_json
    from tuner.service import comparison_of
    from tuner.spec import StudySpec

    with closing(context.open_store()) as store:
        _spec_of(store.get_study(name), StudySpec)
        comparison = comparison_of(name, store)
    if as_json:
        print_json(comparison_json(name, comparison.metric, comparison))
    else:
        print_comparison(comparison)


@click.command()
@click.argument("name")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The HTML file to write.")
@pass_context
def report(context: Context, name: str, output: Path | None) -> None:
    """Write the report of study NAME: one HTML file with tables, plots and caveats.

    \b
    Example:
      tuner study report digits -o digits.html
    """
    from tuner.service import comparison_of, make_report
    from tuner.spec import StudySpec

    path = output or context.home.reports / f"{name}.html"
    with closing(context.open_store()) as store:
        _spec_of(store.get_study(name), StudySpec)
        made = make_report(name, store, path, comparison_of(name, store))
    click.echo(made)


@click.command()
@click.argument("name")
@click.option(
    "--format", "kind", type=click.Choice(["csv", "json"]), default="csv", show_default=True
)
@pass_context
def export(context: Context, name: str, kind: str) -> None:
    """Print every trial of study NAME as CSV or JSON.

    \b
    Examples:
      tuner study export digits > digits.csv
      tuner study export digits --format json
    """
    from tuner.cli.trial import as_record
    from tuner.compare.report import trials_csv

    with closing(context.open_store()) as store:
        trials = store.trials(name)
    if kind == "json":
        print_json([as_record(t) for t in trials])
    else:
        click.echo(trials_csv(trials), nl=False)
