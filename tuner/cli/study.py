"""`tuner study`: start, follow, compare and keep studies."""

from __future__ import annotations

import click

from tuner.cli.lazy import LazyGroup

TABLE = {
    "start": "tuner.cli.study_run:start",
    "resume": "tuner.cli.study_run:resume",
    "stop": "tuner.cli.study_run:stop",
    "list": "tuner.cli.study_read:list_studies",
    "show": "tuner.cli.study_show:show",
    "compare": "tuner.cli.study_compare:compare",
    "report": "tuner.cli.study_read:report",
    "code": "tuner.cli.study_read:code",
    "export": "tuner.cli.study_read:export",
    "delete": "tuner.cli.study_run:delete",
}


@click.group(cls=LazyGroup, table=TABLE)
def study() -> None:
    """Run and compare optimizers and schedules.

    \b
    Examples:
      tuner study start studies/digits.toml
      tuner study start mystudy.toml -S budget.max_steps=1000 --dry-run
      tuner study resume digits
      tuner study compare digits --json
    """
