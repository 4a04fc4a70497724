"""Commands that messages suggest, as they have to be typed after this one.

Environment variables and the configuration file hold for the next command, too; the global options
of this one do not, so suggestions repeat them.
"""

from __future__ import annotations

import re
import shlex
from contextvars import ContextVar

import click
from click.core import ParameterSource

from tuner.paths import mask_password

SUGGESTION = re.compile(r"(?<![\w./-])tuner (?=(?:study|trial|mlflow|db) )")
REPEATED = {"home": "--home", "storage": "--storage", "mlflow_uri": "--mlflow-uri"}

_given: ContextVar[str] = ContextVar("_given", default="")


def forget() -> None:
    """Suggest commands without options, until others are typed."""
    _given.set("")


def remember(context: click.Context) -> None:
    """Take note of the global options that were typed."""
    _given.set(
        "".join(
            f"{option} {shlex.quote(context.params[name])} "
            for name, option in REPEATED.items()
            if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        )
    )


def complete(message: str) -> str:
    """A message whose suggestions repeat those options; never a password."""
    given = _given.get()
    return mask_password(SUGGESTION.sub(lambda found: found[0] + given, message))
