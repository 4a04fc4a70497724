"""`tuner config`: what may stand in a study file."""

from __future__ import annotations

import click

from tuner.cli.lazy import LazyGroup
from tuner.cli.render import print_json


@click.group(cls=LazyGroup, table={"schema": "tuner.cli.config:schema"})
def config() -> None:
    """Describe the study file.

    \b
    Example:
      tuner config schema > study.schema.json
    """


@click.command()
def schema() -> None:
    """Print the JSON schema of the study file.

    Editors complete and check TOML with it.

    \b
    Example:
      tuner config schema > study.schema.json
    """
    from tuner.spec import StudySpec

    print_json(StudySpec.model_json_schema())
