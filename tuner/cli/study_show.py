"""`tuner study show`: where a study stands, also while it runs."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from tuner.cli.context import Context, pass_context
from tuner.cli.options import json_option
from tuner.cli.render import note, print_json, print_table
from tuner.cli.study_read import shown_state

if TYPE_CHECKING:
    from tuner.records import Study, Trial
    from tuner.spec import StudySpec
    from tuner.standing import Best, Standing

UNDER_WAY = ("running", "interrupted", "stopped")


@click.command()
@click.argument("name")
@json_option
@pass_context
def show(context: Context, name: str, as_json: bool) -> None:
    """Show where study NAME stands, also while it runs: stages, arms, failures, what is left.

    Once fresh seeds judge an arm, its numbers are those of `study compare`. Before, they are what
    the model of all its runs expects, which is less than the luckiest run has shown.

    \b
    Examples:
      tuner study show digits
      watch tuner study show digits
      tuner study show digits --json
    """
    from tuner.spec import StudySpec
    from tuner.stages import History
    from tuner.standing import standing_of

    with closing(context.open_store()) as store:
        study = store.get_study(name)
        spec = StudySpec.of(study)
        state = shown_state(store, study)
        trials, curves = store.trials(name), store.lr_curves(name)
    standing = standing_of(spec, History({t.number: t for t in trials}, curves))
    if as_json:
        print_json(as_data(study, state, spec, standing, trials))
    else:
        _print(study, state, spec, standing, trials)


def as_data(
    study: Study, state: str, spec: StudySpec, standing: Standing, trials: list[Trial]
) -> dict[str, Any]:
    """What `study show --json` prints."""
    from tuner.progress import clock

    left = asdict(standing.left)
    return {
        "name": study.name,
        "state": state,
        "metric": spec.study.metric,
        "direction": spec.study.direction,
        "stage": standing.stage if state in UNDER_WAY else None,
        "stages": [
            {
                "stage": stage,
                "finished": standing.finished[stage],
                "planned": planned,
                "running": sum(t.stage == stage and t.state == "running" for t in trials),
                "steps": sum(t.steps for t in trials if t.stage == stage),
                "seconds": sum(t.wall_seconds for t in trials if t.stage == stage),
            }
            for stage, planned in standing.expected.items()
        ],
        "arms": [asdict(arm) for arm in standing.arms],
        "best": {
            arm.name: {
                "number": arm.best.number,
                "value": arm.best.value,
                "low": arm.best.low,
                "high": arm.best.high,
                "params": arm.best.params,
            }
            for arm in standing.arms
            if arm.best is not None
        },
        "failures": standing.failures,
        "calibration": asdict(standing.calibration),
        "left": left if state in UNDER_WAY else None,
        "time_left": clock(standing.left.seconds) if state in UNDER_WAY else None,
        "answer": study.answer,
        "provenance": study.provenance,
        "spec": study.spec,
    }


def _print(
    study: Study, state: str, spec: StudySpec, standing: Standing, trials: list[Trial]
) -> None:
    from tuner.progress import clock

    at = f", in stage {standing.stage}" if state in UNDER_WAY and standing.stage else ""
    note(f"study {study.name}: {state}{at}")
    data = as_data(study, state, spec, standing, trials)
    columns = ("stage", "finished", "planned", "running", "steps", "seconds")
    print_table(columns, [(*list(s.values())[:-1], f"{s['seconds']:.0f}") for s in data["stages"]])
    print_table(
        ("arm", "trials", f"best {spec.study.metric}", "95 % interval", "runs", "settings"),
        [(arm.name, f"{arm.finished}/{arm.expected}", *_best(arm.best)) for arm in standing.arms],
    )
    for arm in standing.arms:
        for text in (*arm.on_bound, *(f"{flag}: under-explored" for flag in arm.flags)):
            note(f"arm {arm.name}: {text}")
        if arm.largest_part is not None:
            note(f"arm {arm.name}: at most {arm.largest_part} examples at once fit in memory")
    note(str(standing.calibration))
    if standing.calibration.memory_bytes is not None:
        note(f"memory at most {standing.calibration.memory_bytes / 2**20:,.0f} MiB a worker so far")
    last: dict[str, str] = {t.failure.kind: t.failure.message for t in trials if t.failure}
    for kind, count in standing.failures.items():
        note(f"{count} trials: {kind}, the last: {last[kind]}")
    if state in UNDER_WAY:
        left = standing.left
        steps = "" if left.steps is None else f", {left.steps:,} steps"
        note(f"left: at most {left.trials} trials{steps}, about {clock(left.seconds)}")
    if study.answer:
        note(study.answer)


def _best(best: Best | None) -> tuple[str, str, str, str]:
    if best is None:
        return ("-", "", "", "")
    from tuner.records import assigned

    interval = "" if best.low is None else f"{best.low:.5g} .. {best.high:.5g}"
    runs = f"{best.runs} fresh" if best.fresh else str(best.runs)
    return (f"{best.value:.5g}", interval, runs, assigned(best.params))
