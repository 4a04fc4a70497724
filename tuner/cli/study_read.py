"""The commands that look at studies: list, show, compare, report, export."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tuner.cli.context import Context, pass_context
from tuner.cli.options import json_option
from tuner.cli.render import note, print_json, print_table
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


@click.command()
@click.argument("name")
@json_option
@pass_context
def show(context: Context, name: str, as_json: bool) -> None:
    """Show where study NAME stands: stages, arms, failures, cost.

    \b
    Example:
      tuner study show digits
    """
    from tuner.progress import Scoreboard, describe
    from tuner.spec import StudySpec
    from tuner.stages import OPEN, stage_sizes

    with closing(context.open_store()) as store:
        study = store.get_study(name)
        trials = store.trials(name)
        state = shown_state(store, study)
    spec = _spec_of(study, StudySpec)
    board = Scoreboard(spec)
    finished = [t for t in trials if t.state not in OPEN]
    sizes = stage_sizes(spec)
    board.start(spec.run.slots or 1, sum(sizes.values()), finished)
    stages = [
        {
            "stage": stage,
            "finished": sum(t.stage == stage for t in finished),
            "planned": size,
            "steps": sum(t.steps for t in finished if t.stage == stage),
            "seconds": sum(t.wall_seconds for t in finished if t.stage == stage),
        }
        for stage, size in sizes.items()
    ]
    failures: dict[str, int] = {}
    for trial in finished:
        if trial.failure is not None:
            failures[trial.failure.kind] = failures.get(trial.failure.kind, 0) + 1
    best = {arm: describe(trial, spec.study.metric) for arm, trial in board.best.items()}
    data: dict[str, Any] = {
        "name": name,
        "state": state,
        "metric": spec.study.metric,
        "direction": spec.study.direction,
        "stages": stages,
        "best": {
            arm: {"number": t.number, "value": t.value, "params": t.params}
            for arm, t in board.best.items()
        },
        "failures": failures,
        "time_left": board.time_left() if state in ("running", "interrupted", "stopped") else None,
        "answer": study.answer,
        "provenance": study.provenance,
        "spec": study.spec,
    }
    if as_json:
        print_json(data)
        return
    note(f"study {name}: {state}")
    columns = ("stage", "finished", "planned", "steps", "seconds")
    print_table(columns, [(*list(s.values())[:-1], f"{s['seconds']:.0f}") for s in stages])
    print_table(("arm", "best trial so far"), [(a.name, best.get(a.name, "-")) for a in spec.arms])
    for kind, count in failures.items():
        note(f"{count} trials: {kind}")
    if data["time_left"] is not None:
        note(f"about {data['time_left']} left")
    if study.answer:
        note(study.answer)


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
