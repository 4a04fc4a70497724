"""The tuners that `compute_to_answer` compares, each as its documentation tells a user to use it.

A tuner is a function `(scenario, repetition, budget, train)` that ends when `budget` steps are
spent, and returns what it would have answered at every moment. `train` runs jobs and waits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.answer_scenarios import EVALUATIONS, STEPS, Scenario
from benchmarks.together import Train
from tuner.jobs import Places, job_of
from tuner.records import Evaluation, LrCurve, Outcome, Trial
from tuner.space import Point
from tuner.spec import StudySpec, parse_spec
from tuner.stages import History, next_trials


@dataclass(frozen=True)
class Choice:
    """From `steps` on the tuner would answer `point`, and says that its loss is `reported`."""

    steps: int
    point: Point
    reported: float


@dataclass
class Bill:
    """Steps spent so far and the choices made on the way."""

    steps: int = 0
    choices: list[Choice] = field(default_factory=list)

    def choose(self, point: Point, reported: float) -> None:
        """Note the answer if it has changed."""
        if not self.choices or (self.choices[-1].point, self.choices[-1].reported) != (
            point,
            reported,
        ):
            self.choices.append(Choice(self.steps, point, reported))


Tuner = Callable[[Scenario, int, int, Train], list[Choice]]


def curve(outcome: Outcome) -> Iterator[tuple[int, float]]:
    """(steps, validation loss) at every evaluation, NaN where the run has diverged."""
    for evaluation in outcome.evaluations:
        yield evaluation.step, evaluation.metrics["loss"]
    if outcome.state == "diverged":
        yield len(outcome.lrs), math.nan


def random_point(scenario: Scenario, rng: np.random.Generator) -> Point:
    """Uniform in the space, on each axis' own scale."""
    return {d.name: d.at(float(rng.random())) for d in scenario.space}


def random_search(scenario: Scenario, repetition: int, budget: int, train: Train) -> list[Choice]:
    """Full trials at random points; the answer is the best of them."""
    rng, bill, best = np.random.default_rng(repetition), Bill(), math.inf
    for number in itertools.count():
        if bill.steps >= budget:
            return bill.choices
        point = random_point(scenario, rng)
        (outcome,) = train([scenario.job(str(number), point, repetition * 10_000 + number)])
        bill.steps += len(outcome.lrs)
        if outcome.value is not None and outcome.value < best:
            best = outcome.value
            bill.choose(point, best)
    raise AssertionError


def optuna_tpe(scenario: Scenario, repetition: int, budget: int, train: Train) -> list[Choice]:
    """`create_study(sampler=TPESampler(), pruner=MedianPruner())`, report and prune; `best_trial`.

    A run that diverges reports NaN, and returns it if it was not pruned.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    bill = Bill()

    def objective(trial: optuna.Trial) -> float:
        point: Point = {}
        for d in scenario.space:
            if d.values:
                point[d.name] = trial.suggest_categorical(d.name, d.values)
            else:
                point[d.name] = d.value(trial.suggest_float(d.name, d.start, d.end, log=d.log))
        seed = repetition * 10_000 + trial.number
        (outcome,) = train([scenario.job(str(trial.number), point, seed)])
        before, loss = bill.steps, math.nan
        for number, (steps, loss) in enumerate(curve(outcome)):
            bill.steps = before + steps
            trial.report(loss, number)
            if trial.should_prune():
                raise optuna.TrialPruned
        return loss

    def note(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if bill.steps >= budget:
            study.stop()
        complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        if complete:
            params = study.best_trial.params
            point = {
                d.name: params[d.name] if d.values else d.value(params[d.name])
                for d in scenario.space
            }
            bill.choose(point, study.best_value)

    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=repetition), pruner=optuna.pruners.MedianPruner()
    )
    study.optimize(objective, n_trials=10_000, callbacks=[note])
    return bill.choices


def ray_asha(scenario: Scenario, repetition: int, budget: int, train: Train) -> list[Choice]:
    """Ray Tune's own ASHA scheduler with random search, one trial after another.

    `ASHAScheduler(max_t=evaluations)`, its other settings at their defaults (grace period 1,
    reduction factor 4). The answer is that of `ResultGrid.get_best_result`: the best last value.
    """
    from ray.tune.schedulers import ASHAScheduler

    rng, bill, best = np.random.default_rng(repetition), Bill(), math.inf
    scheduler: Any = ASHAScheduler(metric="loss", mode="min", max_t=EVALUATIONS)
    for number in itertools.count():
        if bill.steps >= budget:
            return bill.choices
        trial = SimpleNamespace(trial_id=str(number))
        scheduler.on_trial_add(None, trial)
        point = random_point(scenario, rng)
        (outcome,) = train([scenario.job(str(number), point, repetition * 10_000 + number)])
        before, last = bill.steps, math.nan
        for iteration, (steps, loss) in enumerate(curve(outcome), start=1):
            bill.steps, last = before + steps, loss
            result = {"training_iteration": iteration, "loss": loss}
            if math.isnan(loss) or scheduler.on_trial_result(None, trial, result) == "STOP":
                break
        if last < best:
            best = last
            bill.choose(point, best)
    raise AssertionError


def study(preset: str, **changes: float) -> Tuner:
    """This project: a study of one arm with a preset, but for changed keys of its budget."""

    def run(scenario: Scenario, repetition: int, budget: int, train: Train) -> list[Choice]:
        spec = study_spec(scenario, repetition, preset, **changes)
        bill, trials = Bill(), dict[int, Trial]()
        curves: dict[int, LrCurve] = {}
        values: dict[int, list[float]] = {}
        while True:
            history = History(dict(trials), dict(curves), dict(values))
            planned = list(next_trials(spec, history))
            if not planned:
                return bill.choices
            jobs = [job_of(spec, trial, Places((), Path())) for trial in planned]
            outcomes = train([job.model_copy(update={"checkpoint": None}) for job in jobs])
            for trial, outcome in zip(planned, outcomes, strict=True):
                steps = _steps(outcome)
                bill.steps += steps
                trials[trial.number] = trial.model_copy(
                    update={
                        "state": outcome.state,
                        "value": outcome.value,
                        "steps": steps,
                        "wall_seconds": outcome.wall_seconds,
                        "info": outcome.info,
                    }
                )
                values[trial.number] = _losses(outcome.evaluations)
                if outcome.lr_curve is not None:
                    curves[trial.number] = outcome.lr_curve
                _note(bill, spec, History(trials, curves, values))

    return run


def _steps(outcome: Outcome) -> int:
    """Training steps of an outcome, the batches of a range test among them."""
    ranged = round(outcome.lr_curve.cost) if outcome.lr_curve else 0
    return len(outcome.lrs) or ranged


def _losses(evaluations: list[Evaluation]) -> list[float]:
    return [e.metrics["loss"] for e in evaluations]


def study_spec(scenario: Scenario, repetition: int, preset: str, **budget: float) -> StudySpec:
    """The study file: the batch sizes, the other ranges, and `lr = "auto"`."""
    name, low, high = scenario.momentum
    data = {
        "study": {
            "task": scenario.module,
            "metric": "loss",
            "direction": "minimize",
            "preset": preset,
            "seed": repetition,
        },
        "budget": {"max_steps": STEPS, "evaluations": EVALUATIONS, **budget},
        "search": {
            "batch_size": list(scenario.batch_sizes),
            "weight_decay": list(scenario.weight_decay),
        },
        "run": {"slots": 1},
        "arms": [
            {
                "optimizer": scenario.optimizer,
                "schedule": scenario.schedule,
                "optimizer_args": dict(scenario.optimizer_args),
                "search": {name: [low, high]},
            }
        ],
    }
    return parse_spec(data, "benchmark", scenario.task)


def _note(bill: Bill, spec: StudySpec, history: History) -> None:
    """What `study show` calls the best now."""
    from tuner.standing import best_of

    best = best_of(spec, history, spec.arms[0].name)
    if best is not None:
        bill.choose(best.params, best.value)


TUNERS: dict[str, Tuner] = {
    "quick": study("quick"),
    "standard": study("standard"),
    "unscreened": study("quick", screen_length=1.0, trials_per_arm=11),
    "optuna": optuna_tpe,
    "random": random_search,
    "asha": ray_asha,
}
OURS = ("quick", "standard", "unscreened")
