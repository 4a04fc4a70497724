"""`tuner optimizers`: what there is, and what each one takes."""

from __future__ import annotations

import difflib
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from tuner.cli.lazy import LazyGroup
from tuner.cli.options import json_option
from tuner.cli.render import print_json, print_table
from tuner.errors import UsageError
from tuner.recipes import RECIPES

if TYPE_CHECKING:
    from optimizers.core import Hyper, Rule

TABLE = {
    "list": "tuner.cli.optimizers:list_optimizers",
    "show": "tuner.cli.optimizers:show",
    "advise": "tuner.cli.optimizers:advise",
}


@click.group(cls=LazyGroup, table=TABLE)
def optimizers() -> None:
    """List the optimizers, describe one, and say where to start.

    \b
    Examples:
      tuner optimizers list
      tuner optimizers show adamw
      tuner optimizers advise --problem transformer
    """


@click.command("list")
@json_option
def list_optimizers(as_json: bool) -> None:
    """List every optimizer with its defaults and purpose.

    Memory is in arrays of the parameter's size that the optimizer keeps beside it.

    \b
    Example:
      tuner optimizers list
    """
    from optimizers import get_rule, names

    rows = [summary(get_rule(name)) for name in names()]
    if as_json:
        print_json(rows)
    else:
        columns = ("name", "lr", "memory", "weight decay", "when")
        keys = ("name", "lr", "memory", "weight_decay_mode", "when")
        print_table(columns, [[row[key] for key in keys] for row in rows])


@click.command()
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Describe one optimizer.

    Equations, paper, and every hyperparameter with its valid values and search range.

    \b
    Example:
      tuner optimizers show lion
    """
    from optimizers import get_rule, names

    if name not in names():
        close = difflib.get_close_matches(name.lower(), names(), n=1)
        near = f"did you mean {close[0]!r}? " if close else ""
        raise UsageError(f"no optimizer {name!r}; {near}allowed: {', '.join(names())}")
    rule = get_rule(name)
    hypers = [{"name": key, **_finite(asdict(hyper))} for key, hyper in rule.hypers.items()]
    options = [
        {"name": key, **asdict(option), "choices": list(option.choices)}
        for key, option in rule.options.items()
    ]
    facts = {**summary(rule), "equations": rule.equations.strip(), "paper": rule.paper}
    if as_json:
        print_json({**facts, "hyperparameters": hypers, "options": options})
        return
    click.echo(f"{name}: {rule.summary}\n{rule.when}\n\n{facts['equations']}\n\n{rule.paper}\n")
    print_table(
        ("hyperparameter", "default", "valid", "searched", "meaning"),
        [
            (key, f"{hyper.default:g}", hyper.allowed, searched(hyper), hyper.doc)
            for key, hyper in rule.hypers.items()
        ],
    )
    for option in options:
        click.echo(f"{option['name']}={option['default']}  {option['doc']}")


@click.command()
@click.option(
    "--problem",
    type=click.Choice(list(RECIPES)),
    default="unsure",
    show_default=True,
    help="What is trained.",
)
@json_option
def advise(problem: str, as_json: bool) -> None:
    """Say where to start with a kind of problem, and why.

    Prints the settings for a run without a study, the reasons, and arms for a study file.

    \b
    Examples:
      tuner optimizers advise --problem transformer
      tuner optimizers advise --problem rnn --json
    """
    recipe = RECIPES[problem]
    if as_json:
        keys = ("problem", "title", "optimizer", "schedule", "start", "reasons", "arms", "toml")
        print_json({key: getattr(recipe, key) for key in keys})
        return
    start = ", ".join(f"{key} {value:g}" for key, value in recipe.start.items())
    click.echo(f"{recipe.title}: {recipe.optimizer} with {recipe.schedule}, {start}\n")
    click.echo("".join(f"- {reason}\n" for reason in recipe.reasons))
    click.echo(f"For a study file:\n\n{recipe.toml}", nl=False)


def summary(rule: Rule) -> dict[str, Any]:
    """What a list says about one rule."""
    return {
        "name": rule.name,
        "lr": rule.hypers["lr"].default,
        "memory": round(rule.memory(), 2),
        "weight_decay_mode": rule.weight_decay_mode,
        "summary": rule.summary,
        "when": rule.when,
    }


def searched(hyper: Hyper) -> str:
    """The search range in words."""
    scale = " (log)" if hyper.log else ""
    return f"{hyper.low:g} .. {hyper.high:g}{scale}"


def _finite(hyper: dict[str, Any]) -> dict[str, Any]:
    """Leave out the bounds that do not bound."""
    return {key: value for key, value in hyper.items() if value not in (math.inf, -math.inf)}
