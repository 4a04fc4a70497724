"""The commands that change a study: start, resume, stop, delete."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from tuner.cli.context import Context, pass_context
from tuner.cli.options import json_option, yes_option
from tuner.cli.render import note, print_json, print_table
from tuner.errors import INTERRUPTED, BackendError

if TYPE_CHECKING:
    from tuner.service import DryRun, Environment, Result
    from tuner.spec import StudySpec
    from tuner.store.base import Store


@contextlib.contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """The first Ctrl-C or SIGTERM asks to stop, a second Ctrl-C stops at once."""
    asked = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()
        os.write(2, b"\ntuner: stopping; what is finished is kept (Ctrl-C again: at once)\n")

    previous = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def environment(
    context: Context, store: Store, asked: threading.Event | None = None
) -> Environment:
    """The library's view of the global options."""
    from tuner import progress
    from tuner.service import Environment

    return Environment(
        store=store,
        home=context.home,
        search_path=(str(Path.cwd()),),
        reporter=lambda spec: progress.reporter(spec, quiet=context.verbosity < 0),
        mlflow_uri=context.mlflow_uri,
        should_stop=asked.is_set if asked else lambda: False,
        warn=warn,
    )


def warn(text: str) -> None:
    """Show a warning, on stderr."""
    note(f"tuner: warning: {text}")


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "-S",
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the file, e.g. budget.max_steps=100; may be given several times.",
)
@click.option("--slots", type=click.IntRange(min=1), help="Trials at once; like -S run.slots=N.")
@click.option(
    "--from",
    "older",
    multiple=True,
    metavar="NAME",
    help="Start from what study NAME of the same database knows; may be given several times.",
)
@click.option("--dry-run", is_flag=True, help="Show arms, spaces, slots and cost; create nothing.")
@click.option("--replace", is_flag=True, help="Delete a study of that name first.")
@json_option
@pass_context
def start(
    context: Context,
    file: Path,
    overrides: tuple[str, ...],
    slots: int | None,
    older: tuple[str, ...],
    dry_run: bool,
    replace: bool,
    as_json: bool,
) -> int:
    """Run the study of FILE and print which arm is best, and how sure that is.

    Ctrl-C stops within seconds and keeps everything finished; `tuner study resume` goes on. With
    --from, the best configurations of an older study are tried first and its learning rate boxes
    used, so that its arms need no range test; arms match by optimizer, choices may differ.

    \b
    Examples:
      tuner study start studies/digits.toml
      tuner study start studies/digits.toml --from digits -S study.name=digits2
      tuner study start studies/digits.toml -S budget.trials_per_arm=4 -S study.name=try
      tuner study start studies/digits.toml --dry-run
    """
    from tuner.spec import load_spec

    extra = (f"run.slots={slots}",) if slots else ()
    spec = load_spec(file, overrides + extra)
    if older:
        known = tuple(dict.fromkeys((*spec.study.warm_start, *older)))
        spec = spec.model_copy(
            update={"study": spec.study.model_copy(update={"warm_start": known})}
        )
    from tuner import service

    if spec.study.warm_start:  # before the task is tried, which may take long
        _refuse_without_database(context, spec.study.warm_start[0])
        with contextlib.closing(context.open_store()) as store:
            spec = service.warm_started(spec, store)
    if dry_run:
        with named(file):
            return _dry_run(spec, as_json)
    with contextlib.ExitStack() as stack:
        asked = stack.enter_context(stop_on_signal())
        task = service.checked(spec, context.home, (str(Path.cwd()),), asked.is_set)
        with named(file):
            ready = stack.enter_context(task)
        store = stack.enter_context(contextlib.closing(context.open_store()))
        env = environment(context, store, asked)
        return _conclude(context, service.run_checked(spec, env, ready, replace), asked, as_json)


def _refuse_without_database(context: Context, name: str) -> None:
    """Opening a local database that is not there would create it."""
    from tuner.errors import UsageError

    file = context.storage_url.removeprefix("sqlite:///")
    if file != context.storage_url and not Path(file).exists():
        raise UsageError(f"--from {name}: there is no study yet, and no database {file}")


@contextlib.contextmanager
def named(file: Path) -> Iterator[None]:
    """Lets an error about what a study file says begin with the file's name."""
    from tuner.errors import UsageError

    try:
        yield
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from None


@click.command()
@click.argument("name")
@click.option("--slots", type=click.IntRange(min=1), help="Trials at once.")
@json_option
@pass_context
def resume(context: Context, name: str, slots: int | None, as_json: bool) -> int:
    """Go on with study NAME, after a stop or a crash.

    The plan is that of the uninterrupted study; interrupted trials go on from their checkpoints.

    \b
    Example:
      tuner study resume digits
    """
    from tuner import service

    with contextlib.closing(context.open_store()) as store, stop_on_signal() as asked:
        result = service.resume(name, environment(context, store, asked), slots)
        return _conclude(context, result, asked, as_json)


def _conclude(context: Context, result: Result, asked: threading.Event, as_json: bool) -> int:
    name = result.study.name
    if result.comparison is None:
        note(f"stopped; `tuner study resume {name}` goes on")
        return INTERRUPTED if asked.is_set() else 0
    from tuner.compare.verdicts import comparison_json

    if as_json:
        print_json(comparison_json(name, result.comparison.metric, result.comparison))
        return 0
    print_comparison(result.comparison)
    note(f"\nreport:    {os.path.relpath(result.report)}" if result.report else "")
    note(f"its use:   tuner study code {name}")
    if context.mlflow_uri is not None:
        from tuner.store.mlflow import experiment_url, ui_command

        note(f"dashboard: {ui_command(context.mlflow_uri)}")
        with contextlib.suppress(
            BackendError
        ):  # the study does not need MLflow, and its end neither
            note(f"  its page: {experiment_url(context.mlflow_uri, result.study)}")
    return 0


def print_comparison(comparison: Any) -> None:
    """The table and the answer, on stdout."""
    from rich.console import Console

    from tuner.compare.terminal import comparison_table

    console = Console(highlight=False)
    width = console.width if console.is_terminal else 160
    console = Console(highlight=False, width=width)
    console.print(comparison_table(comparison, width))
    console.print(comparison.answer, markup=False, soft_wrap=not console.is_terminal)


def _dry_run(spec: StudySpec, as_json: bool) -> int:
    from tuner import service
    from tuner.advice import warnings_for
    from tuner.space import arm_space
    from tuner.stages import looks, ranged_arms

    found = service.dry_run(spec, (str(Path.cwd()),))
    plan, spec = found.forecast, found.forecast.spec
    warnings = [str(advice) for advice in warnings_for(spec, found.info)]
    for text in warnings:
        warn(text)
    ranged = {arm.name for arm in ranged_arms(spec)}
    arms: list[dict[str, Any]] = [
        {
            "name": arm.name,
            "optimizer": arm.optimizer,
            "schedule": arm.schedule,
            "configurations": spec.trials_of(arm.name),
            "space": {
                d.name: list(d.values) if d.values else [d.low, d.high]
                for d in arm_space(spec, arm, None)
            },
            "lr_from_range_test": arm.name in ranged,
            "from_study": spec.warm[arm.name].study if arm.name in spec.warm else None,
        }
        for arm in spec.arms
    ]
    if as_json:
        print_json(
            {
                "study": spec.study.name,
                "arms": arms,
                "trials": plan.sizes,
                "total_trials": sum(plan.sizes.values()),
                "slots": [s.model_dump(mode="json") for s in found.slots],
                "steps_per_trial": plan.trial_steps,
                "expected_steps": plan.steps,
                "expected_seconds": plan.seconds,
                "steps_ratio_at_the_smallest_batch": plan.steps_ratio,
                "looks": looks(spec),
                "warnings": warnings,
            }
        )
        return 0
    print_table(
        ("arm", "optimizer", "schedule", "lr", "batch sizes", "weight decay", "further"),
        [
            (
                arm["name"],
                arm["optimizer"],
                arm["schedule"],
                "from its range test" if arm["lr_from_range_test"] else _box(arm, "lr"),
                " ".join(map(str, arm["space"]["batch_size"])),
                _box(arm, "weight_decay"),
                " ".join(list(arm["space"])[3:]) or "-",
            )
            for arm in arms
        ],
    )
    _print_plan(spec, found)
    return 0


def _print_plan(spec: StudySpec, found: DryRun) -> None:
    from tuner.stages import detectable_in_words, looks

    plan, budget = found.forecast, spec.budget
    sizes = "  ".join(f"{stage} {size}" for stage, size in plan.sizes.items() if size)
    note(f"\ntrials:  {sum(plan.sizes.values())} at most ({sizes})")
    if budget.screens:
        note(
            f"search:  runs of {budget.screen_length:.0%} of a full trial first; the best"
            f" {budget.promote:.0%} of an arm's configurations at full length"
        )
    if len(looks(spec)) > 1:
        seeds = ", ".join(map(str, looks(spec)))
        note(f"decide:  after {seeds} seeds; arms that are told apart get no more of them")
    note(f"shows:   {detectable_in_words(spec)}")
    for arm, warm in spec.warm.items():
        note(f"from:    {warm.study}: {len(warm.points)} configurations for {arm}")
    note(f"slots:   {', '.join(s.device for s in found.slots)}")
    if plan.trial_steps:
        note(f"length:  {plan.trial_steps} steps a trial at the reference batch size")
    if plan.seconds and plan.steps:
        cost = f"{plan.steps:,} steps, about {plan.seconds / 60:.1f} minutes"
        if plan.steps_ratio > 1:
            ratio = f"{plan.steps_ratio:g} times the steps"
            note(
                f"cost:    at most {cost}, if every batch is the reference; {ratio} at the smallest"
            )
        else:
            note(f"cost:    at most {cost}")


def _box(arm: dict[str, Any], name: str) -> str:
    low, high = arm["space"][name]
    return f"{low:g}" if low == high else f"{low:g} .. {high:g}"


@click.command()
@click.argument("name")
@pass_context
def stop(context: Context, name: str) -> None:
    """Ask the coordinator of study NAME, on whatever host, to stop and keep everything.

    \b
    Example:
      tuner study stop digits
    """
    from datetime import UTC, datetime

    from tuner.lease import is_alive

    with contextlib.closing(context.open_store()) as store:
        store.request_stop(name)
        lease = store.get_lease(name)
    if is_alive(lease, datetime.now(UTC)) and lease is not None:
        note(f"asked process {lease.pid} on {lease.host} to stop")
    else:
        note(f"study {name!r} is not running")


@click.command()
@click.argument("name")
@yes_option
@pass_context
def delete(context: Context, name: str, yes: bool) -> None:
    """Remove study NAME with all its trials, checkpoints and its report; MLflow keeps its copy.

    \b
    Example:
      tuner study delete digits --yes
    """
    from tuner import service

    with contextlib.closing(context.open_store()) as store:
        count = len(store.trials(name))
        service.refuse_running(store, name)
        if not yes:
            click.confirm(f"Delete study {name!r} with {count} trials?", abort=True, err=True)
        service.delete(environment(context, store), name)
    note(f"deleted study {name!r}")
