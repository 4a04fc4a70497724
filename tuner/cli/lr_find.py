"""`tuner lr-find`: which learning rates are worth trying."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tuner.cli.context import Context, pass_context
from tuner.cli.options import json_option
from tuner.cli.render import note, print_json
from tuner.errors import BackendError, UsageError

if TYPE_CHECKING:
    from tuner.range_tests import Request, Result
    from tuner.records import LrCurve
    from tuner.store.base import Store


@click.command("lr-find")
@click.argument("task")
@click.option(
    "--optimizer",
    "-o",
    "names",
    multiple=True,
    default=("adamw",),
    show_default=True,
    metavar="NAME",
    help="Test this optimizer; may be given several times.",
)
@click.option("--batch-size", type=click.IntRange(min=1), default=64, show_default=True)
@click.option(
    "--steps",
    type=click.IntRange(min=20),
    default=200,
    show_default=True,
    help="Batches of one test; more steps, less noise.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--plot", type=click.Path(dir_okay=False, path_type=Path), help="Also draw the curves (PNG)."
)
@json_option
@pass_context
def lr_find(
    context: Context,
    task: str,
    names: tuple[str, ...],
    batch_size: int,
    steps: int,
    seed: int,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Run a learning-rate range test.

    The learning rate rises exponentially with every batch until the loss explodes. The suggestion
    lies well below that point; model and data are left as they were. TASK is importable from the
    current directory or PYTHONPATH. The curves are stored in the database and in MLflow.

    \b
    Examples:
      tuner lr-find studies.digits:build --optimizer adamw --optimizer sgd
      tuner lr-find mytask:build --plot lr.png
      tuner lr-find mytask:build --json
    """
    from tuner.range_tests import Request

    if plot is not None and not plot.absolute().parent.is_dir():
        raise UsageError(f"--plot {plot}: there is no such folder")
    request = Request(
        task=task,
        optimizers=tuple(dict.fromkeys(names)),
        batch_size=batch_size,
        steps=steps,
        seed=seed,
        search_path=(str(Path.cwd()),),
    )
    results = _run(context, request)
    _store(context, request, results)
    curves = {result.trial.arm: result.curve for result in results}
    if plot is not None:
        _draw(plot, curves)
    if as_json:
        print_json({"results": [as_record(name, curve) for name, curve in curves.items()]})
    else:
        _show(curves)


def as_record(optimizer: str, curve: LrCurve) -> dict[str, Any]:
    """One entry of `--json`."""
    return {
        "optimizer": optimizer,
        "suggested_lr": curve.suggested_lr,
        "low": curve.low,
        "high": curve.high,
        "diverges_at": curve.diverges_at,
        "flags": curve.flags,
        "reason": curve.reason,
        "curve": [list(point) for point in curve.points],
    }


def _run(context: Context, request: Request) -> list[Result]:
    from tuner.executors.devices import leased, plan_slots
    from tuner.executors.local import LocalExecutor
    from tuner.range_tests import in_order, run

    slots = plan_slots()[: len(request.optimizers)]
    with leased(slots, context.home.devices) as free:
        executor = LocalExecutor(free, log_dir=context.home.logs)
        try:
            results = []
            for result in run(request, executor):
                note(f"{result.trial.arm}: {len(result.curve.points)} batches")
                results.append(result)
            return in_order(results)
        finally:
            executor.close()


def _store(context: Context, request: Request, results: list[Result]) -> None:
    from tuner.provenance import collect
    from tuner.range_tests import study

    row = study(request, collect(request.task, Path.cwd()))
    with closing(context.open_store()) as store:
        store.create_study(row)
        for result in results:
            store.save_outcome(row.name, result.trial, [], lr_curve=result.curve)
        note(f"stored as study {row.name}")
        if context.mlflow_uri is not None:
            _send(context, context.mlflow_uri, store, row.name)


def _send(context: Context, uri: str, store: Store, name: str) -> None:
    from tuner.store.mlflow import sync

    try:
        sync(store, name, uri)
    except BackendError as error:
        note(f"{error}; `tuner mlflow sync {name}` sends it later")


def _draw(path: Path, curves: dict[str, LrCurve]) -> None:
    from tuner.compare.plots import lr_curves_figure

    try:
        lr_curves_figure(curves).savefig(path, format="png", dpi=150)
    except OSError as error:
        raise UsageError(f"--plot {path}: {error.strerror or error}") from None


def _show(curves: dict[str, LrCurve]) -> None:
    from rich.console import Console

    from tuner.compare.terminal import lr_curve_text

    console = Console()
    click.echo(lr_curve_text(curves, width=min(console.width, 100), height=20))
    for name, curve in curves.items():
        click.echo(f"\n{name}: {_headline(curve)}\n  {curve.reason}")
        if curve.flags:
            click.echo(f"  flags: {', '.join(curve.flags)}")


def _headline(curve: LrCurve) -> str:
    if curve.suggested_lr is None:
        return "no suggestion"
    box = f", search {curve.low:.3g} to {curve.high:.3g}" if curve.low and curve.high else ""
    return f"suggested learning rate {curve.suggested_lr:.3g}{box}"
