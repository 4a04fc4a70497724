"""`tuner lr-find`: which learning rates are worth trying."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from tuner.cli.context import Context, pass_context
from tuner.cli.options import json_option
from tuner.cli.render import note, print_json
from tuner.errors import BackendError, UsageError

if TYPE_CHECKING:
    from tuner.range_tests import Request, Result
    from tuner.records import LrCurve
    from tuner.store.base import Store

FORMATS = ("png", "svg", "pdf")  # of a plot


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
    "--run-steps",
    type=click.IntRange(min=1),
    help="Length of the run that the answer is for, in optimizer steps.  [default: 10 epochs]",
)
@click.option(
    "--schedule",
    default="warmup_cosine",
    show_default=True,
    metavar="NAME",
    help="Schedule of that run; schedule-free optimizers keep their rate.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=20),
    help="What one test may cost, in optimizer steps.  [default: 1.48 runs, at most 2000]",
)
@click.option("--quick", is_flag=True, help="One classic ramp: cheap, without an interval.")
@click.option(
    "--on",
    type=click.Choice(["train", "val"]),
    default="train",
    show_default=True,
    help="Judge by held-out training batches or by validation batches.",
)
@click.option(
    "--axis",
    type=click.Choice(["lr", "adamw_lr", "d_coef"]),
    help="What to move: lr, muon's adamw_lr, prodigy's d_coef.  [default: the optimizer's own]",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also draw the curves, as .png, .svg or .pdf.",
)
@json_option
@pass_context
def lr_find(
    context: Context,
    task: str,
    names: tuple[str, ...],
    batch_size: int,
    run_steps: int | None,
    schedule: str,
    steps: int | None,
    quick: bool,
    on: Literal["train", "val"],
    axis: str | None,
    seed: int,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Find the learning rate of a run, and how sure that is.

    A ramp finds where training explodes; short runs below that, at two lengths and from the same
    start, find the best peak rate, which is continued to the length of the run. The answer comes
    with an 80 % interval, or it is refused with a reason. TASK is importable from the current
    directory or PYTHONPATH. The curves are stored in the database and in MLflow.

    \b
    Examples:
      tuner lr-find studies.digits:build --optimizer adamw --optimizer sgd
      tuner lr-find mytask:build --run-steps 5000 --plot lr.png
      tuner lr-find mytask:build --optimizer muon --axis adamw_lr
      tuner lr-find mytask:build --quick --json
    """
    from tuner.range_tests import Request

    if plot is not None:
        _check_plot(plot)
    request = Request(
        task=task,
        optimizers=tuple(dict.fromkeys(names)),
        batch_size=batch_size,
        steps=steps,
        run_steps=run_steps,
        quick=quick,
        on=on,
        axis=axis,
        schedule=schedule,
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
        "interval_low": curve.interval_low,
        "interval_high": curve.interval_high,
        "safe_low": curve.safe_low,
        "safe_high": curve.safe_high,
        "axis": curve.axis,
        "method": curve.method,
        "run_steps": curve.run_steps,
        "cost": curve.cost,
        "curve": [list(point) for point in curve.points],
        "runs": [
            [steps, lr, loss if math.isfinite(loss) else None] for steps, lr, loss in curve.grid
        ],
        "optima": [list(point) for point in curve.optima],
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
            with bars() as moved:
                for result in run(request, executor, moved):
                    note(f"{result.trial.arm}: {result.curve.cost:.0f} steps")
                    results.append(result)
            return in_order(results)
        finally:
            executor.close()


@contextmanager
def bars() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar for each optimizer on stderr; none when nobody looks."""
    from rich.console import Console
    from rich.progress import Progress, TaskID

    console = Console(stderr=True)
    rows: dict[str, TaskID] = {}
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:

        def moved(name: str, step: int, steps: int) -> None:
            if name not in rows:
                rows[name] = progress.add_task(name, total=steps)
            progress.update(rows[name], completed=step, total=steps)

        yield moved


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


def _format(path: Path) -> str:
    """What the end of a name says; a name without one is that of a PNG file."""
    return path.suffix.lower().removeprefix(".") or FORMATS[0]


def _check_plot(path: Path) -> None:
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--plot {path}: there is no such folder")
    if _format(path) not in FORMATS:
        raise UsageError(f"--plot {path}: allowed: {', '.join(f'.{end}' for end in FORMATS)}")


def _draw(path: Path, curves: dict[str, LrCurve]) -> None:
    from tuner.compare.plots import lr_curves_figure

    try:
        lr_curves_figure(curves).savefig(path, format=_format(path), dpi=150)
    except OSError as error:
        raise UsageError(f"--plot {path}: {error.strerror or error}") from None


def _show(curves: dict[str, LrCurve]) -> None:
    from rich.console import Console

    from tuner.compare.terminal import lr_curve_text

    console = Console()
    click.echo(lr_curve_text(curves, width=min(console.width, 100), height=20))
    for name, curve in curves.items():
        click.echo(f"\n{name}: {curve.headline}\n  {curve.reason}")
        if curve.safe_low is not None and curve.safe_high is not None:
            click.echo(f"  little is lost between {curve.safe_low:.2g} and {curve.safe_high:.2g}")
