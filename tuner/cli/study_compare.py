"""`tuner study compare`: the verdicts of one study, one factor of it, or several studies."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from tuner.cli.context import Context, pass_context
from tuner.cli.options import json_option
from tuner.cli.render import note, print_json
from tuner.errors import UsageError

if TYPE_CHECKING:
    from tuner.compare.targets import Cost
    from tuner.findings import Factor, Rows
    from tuner.store.base import Store


@click.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option(
    "--by",
    "factor",
    type=click.Choice(["schedule", "optimizer", "batch_size", "clip"]),
    help="What one factor does, from arms that differ in nothing else.",
)
@click.option(
    "--cost",
    type=click.Choice(["steps", "examples", "seconds"]),
    default="seconds",
    show_default=True,
    help="What time to target is counted in.",
)
@click.option(
    "--target",
    type=float,
    help="Metric to reach; by default the median of the baseline's judged scores.",
)
@click.option("--baseline", metavar="ARM", help="Speed-ups are over it; by default the first arm.")
@json_option
@pass_context
def compare(
    context: Context,
    names: tuple[str, ...],
    factor: Factor | None,
    cost: Cost,
    target: float | None,
    baseline: str | None,
    as_json: bool,
) -> None:
    """Compare the arms of study NAME on fresh seeds: which is best, and how sure is that?

    Several NAMEs are compared together: the arms that all of them have, over their tasks.

    \b
    Examples:
      tuner study compare digits
      tuner study compare digits --json
      tuner study compare digits --target 0.97 --cost steps
      tuner study compare digits --by schedule
      tuner study compare digits tabular charlm
    """
    from tuner.findings import Rows

    if len(names) > 1 and (factor or target is not None):
        option = "--by" if factor else "--target"
        raise UsageError(f"{option} is for one study, but {len(names)} are named")
    with closing(context.open_store()) as store:
        if len(names) > 1:
            _several(names, store, cost, baseline, as_json)
        elif factor:
            _factor(Rows(names[0], store), factor, as_json)
        else:
            _one(Rows(names[0], store), cost, target, baseline, as_json)


def _one(rows: Rows, cost: Cost, target: float | None, baseline: str | None, as_json: bool) -> None:
    from tuner.cli.study_run import print_comparison
    from tuner.compare.tables import targets_table, wins_table
    from tuner.compare.targets import COSTS
    from tuner.compare.verdicts import comparison_json

    comparison = rows.comparison
    try:
        targets = rows.targets(baseline, target, COSTS if as_json else (cost,))
    except UsageError as error:
        if baseline is not None or target is not None:
            raise
        targets = []
        note(f"no time to target: {error}")
    if as_json:
        told = comparison_json(rows.name, comparison.metric, comparison)
        told["targets"] = [t.model_dump(mode="json") for t in targets]
        print_json(told)
        return
    print_comparison(comparison)
    _print(wins_table(comparison), *(targets_table(t, comparison.metric) for t in targets))


def _factor(rows: Rows, factor: Factor, as_json: bool) -> None:
    from tuner.compare.batches import across_answer
    from tuner.compare.marginal import Marginal
    from tuner.compare.tables import across_table, batch_table, marginal_table
    from tuner.findings import by_factor

    found = by_factor(rows, factor)
    if isinstance(found, Marginal):
        if as_json:
            print_json({"study": rows.name, **found.model_dump(mode="json")})
            return
        _print(*([marginal_table(found)] if found.contrasts else []), found.answer)
        return
    metric = rows.comparison.metric
    across = across_answer(found.rows)
    if as_json:
        print_json(
            {
                "study": rows.name,
                "factor": factor,
                "metric": metric,
                "direction": rows.comparison.direction,
                "arms": [arm.model_dump(mode="json") for arm in found.arms],
                "across": [row.model_dump(mode="json") for row in found.rows],
                "answer": " ".join([*(arm.answer for arm in found.arms), across]),
            }
        )
        return
    for arm in found.arms:
        _print(*([batch_table(arm, metric)] if arm.levels else []), arm.answer)
    if any(level.truncated for arm in found.arms for level in arm.levels):
        _print("*: before the end of its schedule, which costs a decaying schedule.")
    _print(*([across_table(found.rows, metric)] if found.rows else []), across)
    _print(
        "Single seeds of a search that chose its batch sizes itself: a guide to the cost, not a "
        "verdict on the batch size."
    )


def _several(
    names: tuple[str, ...], store: Store, cost: Cost, baseline: str | None, as_json: bool
) -> None:
    from tuner.compare.tables import per_study_table, pooled_table
    from tuner.findings import Rows, pool_studies

    pooled = pool_studies([Rows(n, store) for n in names], cost=cost, baseline=baseline)
    if as_json:
        print_json(pooled.model_dump(mode="json"))
        return
    _print(pooled_table(pooled), per_study_table(pooled), pooled.answer)


def _print(*parts: Any) -> None:
    """Tables and sentences on stdout; a pipe gets them whole."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=160)
    for part in parts:
        if isinstance(part, str):
            console.print(part, markup=False, soft_wrap=not console.is_terminal)
        else:
            console.print(part)
