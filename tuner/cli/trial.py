"""`tuner trial`: look at single trials, and run one again."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, get_args

import click

from tuner.cli.context import Context, pass_context
from tuner.cli.lazy import LazyGroup
from tuner.cli.options import json_option
from tuner.cli.render import note, print_json, print_table
from tuner.errors import UsageError

if TYPE_CHECKING:
    from tuner.records import Evaluation, Trial

TABLE = {
    "list": "tuner.cli.trial:list_trials",
    "show": "tuner.cli.trial:show",
    "rerun": "tuner.cli.trial:rerun",
}


@click.group(cls=LazyGroup, table=TABLE)
def trial() -> None:
    """Look at the trials of a study.

    \b
    Examples:
      tuner trial list digits
      tuner trial show digits 17
      tuner trial rerun digits 17
    """


def as_record(trial: Trial) -> dict[str, Any]:
    """One entry of `tuner trial list --json`."""
    row = trial.model_dump(mode="json")
    keys = ("number", "arm", "stage", "seed", "state", "params", "value", "device", "attempts")
    times = ("started_at", "finished_at", "failure")
    return {key: row[key] for key in (*keys, *times)}


def _require(option: str, value: str | None, allowed: Collection[str]) -> None:
    if value is not None and value not in allowed:
        raise UsageError(f"{option} {value}: allowed: {', '.join(allowed)}")


@click.command("list")
@click.argument("name")
@click.option("--stage", help="Only trials of this stage.")
@click.option("--arm", help="Only trials of this arm.")
@json_option
@pass_context
def list_trials(
    context: Context, name: str, stage: str | None, arm: str | None, as_json: bool
) -> None:
    """List the trials of study NAME.

    \b
    Examples:
      tuner trial list digits --stage explore
      tuner trial list digits --json
    """
    from tuner.records import Stage, assigned

    with contextlib.closing(context.open_store()) as store:
        trials, spec = store.trials(name), store.get_study(name).spec
    arms = dict.fromkeys([*(a["name"] for a in spec.get("arms", ())), *(t.arm for t in trials)])
    _require("--stage", stage, get_args(Stage))
    _require("--arm", arm, arms)
    rows = [t for t in trials if stage in (None, t.stage) and arm in (None, t.arm)]
    if as_json:
        print_json([as_record(t) for t in rows])
        return
    print_table(
        ("number", "stage", "arm", "seed", "state", "value", "settings", "seconds"),
        [
            (
                t.number,
                t.stage,
                t.arm,
                t.seed,
                t.state,
                "" if t.value is None else f"{t.value:.5g}",
                assigned(t.params),
                f"{t.wall_seconds:.1f}",
            )
            for t in rows
        ],
    )


@click.command()
@click.argument("name")
@click.argument("number", type=click.IntRange(min=0))
@json_option
@pass_context
def show(context: Context, name: str, number: int, as_json: bool) -> None:
    """Show everything about trial NUMBER of study NAME, its evaluations and failure.

    \b
    Example:
      tuner trial show digits 17 --json
    """
    with contextlib.closing(context.open_store()) as store:
        row = store.get_trial(name, number)
        evaluations = store.evaluations(name, number)
        lrs = store.step_lrs(name, number)
        curve = store.lr_curves(name).get(number)
    if as_json:
        data = row.model_dump(mode="json")
        data["evaluations"] = [e.model_dump(mode="json") for e in evaluations]
        data["lrs"] = lrs
        data["lr_curve"] = curve.model_dump(mode="json") if curve else None
        print_json(data)
        return
    result = "" if row.value is None else f"  value {row.value:.6g}"
    print_table(
        ("", ""),
        [
            ("trial", f"{number} of {name}: {row.stage}, {row.arm}, seed {row.seed}"),
            ("state", f"{row.state}{result}"),
            ("configuration", row.configuration.model_dump_json()),
            ("ran on", f"{row.device} of {row.host}, attempts {row.attempts}"),
            ("took", f"{row.wall_seconds:.2f} s, {row.steps} steps"),
            ("layers", layers_line(row.info.get("layers", []))),
            ("code", str(row.provenance.get("code", ""))),
            ("packages", str(row.provenance.get("packages", ""))),
        ],
    )
    if evaluations:
        names = sorted(evaluations[-1].metrics)
        print_table(
            ("step", "lr", "train loss", "grad norm", *names),
            [
                (
                    e.step,
                    f"{e.lr:.4g}",
                    f"{e.train_loss:.5g}",
                    f"{e.grad_norm:.4g}",
                    *(f"{e.metrics[m]:.5g}" for m in names),
                )
                for e in evaluations
            ],
        )
    if curve is not None:
        note(curve.reason)
    if row.failure is not None:
        note(f"{row.failure.kind}: {row.failure.message}\n{row.failure.traceback}".rstrip())


@click.command()
@click.argument("name")
@click.argument("number", type=click.IntRange(min=0))
@json_option
@pass_context
def rerun(context: Context, name: str, number: int, as_json: bool) -> int:
    """Run trial NUMBER of study NAME again and compare, to the last bit; nothing is stored.

    Exit code 1 when a metric differs: other code, packages, threads or device.

    \b
    Example:
      tuner trial rerun digits 17
    """
    from tuner import service
    from tuner.cli.study_run import environment

    with contextlib.closing(context.open_store()) as store:
        trial, then, outcome = service.rerun(name, number, environment(context, store))
    same = _metrics(then) == _metrics(outcome.evaluations) and trial.value == outcome.value
    if as_json:
        print_json(
            {
                "number": number,
                "identical": same,
                "then": {"state": trial.state, "value": trial.value, "metrics": _metrics(then)},
                "now": {
                    "state": outcome.state,
                    "value": outcome.value,
                    "metrics": _metrics(outcome.evaluations),
                },
            }
        )
    else:
        print_table(
            ("", "state", "value"),
            [("then", trial.state, trial.value), ("now", outcome.state, outcome.value)],
        )
        note("identical to the last bit" if same else "different")
    return 0 if same else 1


def _metrics(evaluations: list[Evaluation]) -> list[dict[str, float]]:
    return [e.metrics for e in evaluations]


def layers_line(looks: list[dict[str, Any]]) -> str:
    """What the last look at a trial's layers found, by name."""
    if not looks:
        return ""
    verdicts = {name: layer["verdict"] for name, layer in looks[-1]["layers"].items()}
    sick = [f"{name} {verdict}" for name, verdict in verdicts.items() if verdict != "ok"]
    return f"{', '.join(sick) or 'all well'} at step {looks[-1]['step']}"
