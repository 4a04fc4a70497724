"""Whole studies, the first with real worker processes: what a study does, keeps and says."""

from dataclasses import replace

import pytest

from tests.study.specs import ADAMW, QUICK, SGD, study_spec
from tuner import service
from tuner.errors import TaskError, TunerError, UsageError
from tuner.service import Environment


def test_a_study_from_start_to_answer(env: Environment, capfd: pytest.CaptureFixture[str]) -> None:
    spec = study_spec(study={"task": "tiny:noisy"}, run={"slots": 2})
    result = service.start(spec, env)
    assert result.study.state == "completed"
    assert result.study.answer == result.comparison.answer != ""
    assert result.report.read_text().startswith("<!doctype html>")
    trials = env.store.trials("small")
    assert [t.number for t in trials] == list(range(len(trials)))
    assert all(t.state in ("completed", "pruned", "diverged") for t in trials)
    ran = next(t for t in trials if t.stage == "decide")
    assert ran.provenance["code"].keys() == {"commit", "dirty"}
    assert "torch" in ran.provenance["packages"]
    assert ran.provenance["task"] == "tiny:noisy"
    assert ran.device.startswith("cpu")
    assert ran.host
    assert ran.started_at < ran.finished_at
    assert len(env.store.step_lrs("small", ran.number)) == ran.steps == 12
    assert [e.step for e in env.store.evaluations("small", ran.number)] == [3, 6, 9, 12]
    assert env.store.get_lease("small") is None
    lines = capfd.readouterr().err.splitlines()
    assert len([line for line in lines if line.startswith("[")]) == len(trials)

    trial, then, now = service.rerun("small", trials[-1].number, env)  # bit-equal, dropout included
    assert trial.value == now.value
    assert [e.metrics for e in then] == [e.metrics for e in now.evaluations]
    assert len(then) == 4


@pytest.mark.usefixtures("in_this_process")
def test_an_answer_without_its_report_is_an_answer(env: Environment) -> None:
    env.home.reports.parent.mkdir(parents=True, exist_ok=True)
    env.home.reports.write_text("a file where the folder should be")
    said: list[str] = []
    result = service.start(study_spec(**QUICK), replace(env, warn=said.append))
    assert result.comparison is not None
    assert result.study.answer == env.store.get_study("small").answer == result.comparison.answer
    assert result.report is None
    assert any(text.startswith("no report: ") for text in said)


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.slow
def test_a_name_is_used_once(env: Environment) -> None:
    spec = study_spec(**QUICK)
    service.start(spec, env)
    with pytest.raises(UsageError, match="resume small"):
        service.start(spec, env)
    before = env.store.get_study("small").created_at
    service.start(spec, env, replace=True)
    assert env.store.get_study("small").created_at > before


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(
    ("study", "error", "message"),
    [
        ({"task": "faulty:build_raises"}, TaskError, "no such data"),
        ({"task": "faulty:not_a_task"}, UsageError, "Task"),
        ({"task": "nowhere:build"}, UsageError, "nowhere"),
        ({"task": "tiny:buld"}, UsageError, "build"),
        ({"metric": "accuracy"}, UsageError, "allowed: .*acc"),
    ],
)
def test_what_is_wrong_with_a_task_is_told_before_anything_is_created(
    env: Environment, study: dict[str, str], error: type[TunerError], message: str
) -> None:
    with pytest.raises(error, match=message):
        service.start(study_spec(**QUICK, study=study), env)
    assert env.store.list_studies() == []


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.slow
def test_mlflow_follows_a_study_and_sync_finds_nothing_missing(env: Environment) -> None:
    with_mlflow = replace(env, mlflow_uri=env.home.mlflow_uri)
    service.start(study_spec(**QUICK), with_mlflow)
    report = service.sync_mlflow("small", env.store, env.home.mlflow_uri)
    runs = len(env.store.trials("small")) + 1 + 1  # trials, arms, study
    assert (report.created, report.completed, report.unchanged) == (0, 0, runs)


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.slow
def test_a_study_does_not_need_mlflow(env: Environment, capfd: pytest.CaptureFixture[str]) -> None:
    down = replace(env, mlflow_uri="http://127.0.0.1:9")
    result = service.start(study_spec(**QUICK), down)
    assert result.study.state == "completed"
    errors = capfd.readouterr().err
    assert errors.count("tuner mlflow sync small") == 1
    report = service.sync_mlflow("small", env.store, env.home.mlflow_uri)
    assert report.created == len(env.store.trials("small")) + 2


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.slow
def test_a_regression_is_minimized(env: Environment) -> None:
    study = {"task": "tiny:regression", "metric": "loss", "direction": "minimize"}
    result = service.start(study_spec(**{**QUICK, "arms": [ADAMW, SGD]}, study=study), env)
    assert result.comparison.direction == "minimize"
    assert result.comparison.arms[0].mean <= result.comparison.arms[1].mean


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.slow
def test_trials_of_a_resumed_study_tell_the_code_they_ran_with(
    env: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopping = replace(env, should_stop=lambda: bool(env.store.list_studies()))
    monkeypatch.setattr(service, "collect", lambda *_: {"code": {"commit": "old"}})
    assert service.start(study_spec(**QUICK), stopping).study.state == "stopped"
    monkeypatch.setattr(service, "collect", lambda *_: {"code": {"commit": "new"}})
    service.resume("small", env)
    assert {t.provenance["code"]["commit"] for t in env.store.trials("small")} == {"new"}
    assert env.store.get_study("small").provenance["code"]["commit"] == "old"
