"""The contents of MLflow, written live and by `sync`, in a local store and through a server."""

import math
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from tests.servers import MlflowServer
from tests.store.samples import (
    NAN,
    NOW,
    make_evaluation,
    make_finished_trial,
    make_lr_curve,
    make_study,
    make_trial,
)
from tuner.errors import BackendError
from tuner.records import Study, TrialState
from tuner.store import mlflow as module
from tuner.store.mlflow import (
    RunWriter,
    connect,
    find_experiment,
    sync,
)
from tuner.store.projection import trial_view
from tuner.store.sink import MlflowSink
from tuner.store.sql import SqlStore, open_store

LRS = [0.1 * 0.99**step for step in range(1234)]
ARMS = [
    {
        "name": "sgd-cosine",
        "optimizer": "sgd",
        "schedule": "constant",
        "params": {"lr": 0.1},
        "seeds": 5,
        "scores": [0.5, 0.6],
        "mean": 0.55,
        "verdict": "best",
    }
]


@pytest.fixture
def study(request: pytest.FixtureRequest) -> Study:
    """A study of this test's own, since the server serves all of them."""
    return make_study(request.node.name[:60], created_at=datetime.now().astimezone())


@pytest.fixture
def store(tmp_path: Path, study: Study) -> Iterator[SqlStore]:
    """A store with one trial of each state in it."""
    store = open_store(f"sqlite:///{tmp_path}/tuner.db")
    store.create_study(study)
    for number, state in enumerate(["completed", "diverged", "pruned", "failed", "interrupted"]):
        trial = make_finished_trial(number, state=state, params={"lr": 0.1, "betas": (0.9, NAN)})
        curve = make_lr_curve() if number == 0 else None
        evaluations = [make_evaluation(10), make_evaluation(20, train_loss=NAN)]
        store.save_outcome(study.name, trial, evaluations, LRS, curve)
    yield store
    store.close()


def runs(uri: str, study: Study) -> dict[str, Run]:
    """All runs by key; each key once."""
    client = connect(uri)
    experiment = find_experiment(client, study)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], max_results=5000)
    assert max(Counter(run.data.tags["tuner.key"] for run in found).values()) == 1
    return {run.data.tags["tuner.key"]: run for run in found}


def history(client: MlflowClient, run: Run, key: str) -> list[tuple[int, int, float]]:
    return [(m.step, m.timestamp, m.value) for m in client.get_metric_history(run.info.run_id, key)]


def write_live(uri: str, store: SqlStore, study: Study) -> None:
    """What a coordinator does."""
    sink = MlflowSink(uri)
    sink.study_started(study)
    curves = store.lr_curves(study.name)
    for trial in store.trials(study.name):
        sink.trial_started(trial.model_copy(update={"state": "running"}))
        n = trial.number
        evaluations, lrs = store.evaluations(study.name, n), store.step_lrs(study.name, n)
        sink.trial_finished(study, trial, evaluations, lrs, curves.get(n))
    report = sink.close(60)
    assert (report.failed, report.message, report.pending) == (False, "", 0)


def test_runs_are_nested_and_say_what_became_of_them(
    tracking_uri: str, store: SqlStore, study: Study
) -> None:
    write_live(tracking_uri, store, study)
    found = runs(tracking_uri, study)
    assert set(found) == {"study", "arm:sgd-cosine", *(f"trial:{n}" for n in range(5))}
    arm = found["arm:sgd-cosine"]
    assert arm.data.tags["mlflow.parentRunId"] == found["study"].info.run_id
    trials = [found[f"trial:{n}"] for n in range(5)]
    assert {t.data.tags["mlflow.parentRunId"] for t in trials} == {arm.info.run_id}
    states = [(t.data.tags["tuner.state"], t.info.status) for t in trials]
    assert states == [
        ("completed", "FINISHED"),
        ("diverged", "FAILED"),
        ("pruned", "KILLED"),
        ("failed", "FAILED"),
        ("interrupted", "KILLED"),
    ]
    assert found["study"].info.status == arm.info.status == "RUNNING"
    assert trials[3].data.tags["tuner.failure"] == "user_error"
    assert trials[0].data.tags["tuner.stage"] == "explore"
    assert trials[0].info.start_time == round(NOW.timestamp() * 1000)
    assert trials[0].info.end_time == trials[0].info.start_time + 9000
    wanted = {"optimizer": "sgd", "schedule": "constant", "batch_size": "64", "lr": "0.1"}
    assert trials[0].data.params.items() >= wanted.items()


def test_metrics_have_their_steps_and_times(
    mlflow_server: MlflowServer, store: SqlStore, study: Study
) -> None:
    sync(store, study.name, mlflow_server.uri)
    client, run = connect(mlflow_server.uri), runs(mlflow_server.uri, study)["trial:0"]
    start = run.info.start_time
    assert history(client, run, "val_loss") == [
        (10, start + 1000, 0.1),
        (20, start + 2000, 0.05),
    ]
    step, timestamp, value = history(client, run, "train_loss")[1]
    assert (step, timestamp, math.isnan(value)) == (20, start + 2000, True)
    lr = {step: value for step, _, value in history(client, run, "lr")}
    assert {1, 10, 20, 1234} <= set(lr)
    assert 200 <= len(lr) <= 202  # of the steps, and the two evaluations
    assert (lr[1], lr[1234]) == (LRS[0], LRS[-1])
    assert [value for _, _, value in history(client, run, "lr_range.lr")] == [1e-5, 1e-4, 0.1, 1.0]
    assert run.data.metrics["lr_range.suggested_lr"] == 3e-4
    assert run.data.metrics["wall_seconds"] == 12.25


def test_files_reach_the_artifacts(
    mlflow_server: MlflowServer, store: SqlStore, study: Study
) -> None:
    sync(store, study.name, mlflow_server.uri)
    client, found = connect(mlflow_server.uri), runs(mlflow_server.uri, study)
    names = [file.path for file in client.list_artifacts(found["trial:0"].info.run_id)]
    assert names == ["lr_curve.json", "lr_curve.png"]
    report = Path(store.database.url.database or "").with_name("report.html")
    report.write_text("<p>answer</p>")
    sink = MlflowSink(mlflow_server.uri)
    sink.study_started(study)
    sink.log_report(study, report)
    assert sink.close(60).pending == 0
    names = [file.path for file in client.list_artifacts(found["study"].info.run_id)]
    assert names == ["report.html", "study.json"]


def test_live_and_rebuilt_runs_are_the_same(
    tracking_uri: str, store: SqlStore, study: Study, capfd: pytest.CaptureFixture[str]
) -> None:
    write_live(tracking_uri, store, study)
    report = sync(store, study.name, tracking_uri)
    assert (report.created, report.completed, report.unchanged) == (0, 0, 7)
    assert capfd.readouterr().out == ""


def test_sync_creates_everything_once(local_uri: str, store: SqlStore, study: Study) -> None:
    report = sync(store, study.name, local_uri)
    assert (report.created, report.completed, report.unchanged) == (7, 0, 0)
    before = {key: repr(run) for key, run in runs(local_uri, study).items()}
    assert sync(store, study.name, local_uri).unchanged == 7
    assert {key: repr(run) for key, run in runs(local_uri, study).items()} == before


def test_the_answer_and_the_comparison(local_uri: str, store: SqlStore, study: Study) -> None:
    write_live(local_uri, store, study)
    store.set_study_state(study.name, "completed", answer="Use sgd-cosine.")
    finished = store.get_study(study.name)
    sink = MlflowSink(local_uri)
    sink.study_started(study)
    sink.study_finished(finished, ARMS)
    sink.close(60)
    found = runs(local_uri, study)
    arm = found["arm:sgd-cosine"]
    assert arm.data.metrics == {"seeds": 5.0, "mean": 0.55}
    assert arm.data.tags["tuner.verdict"] == "best"
    assert found["study"].data.tags["mlflow.note.content"] == "Use sgd-cosine."
    assert found["study"].info.status == arm.info.status == "FINISHED"
    assert sync(store, study.name, local_uri).unchanged == 7
    assert sync(store, study.name, local_uri, arms=ARMS).unchanged == 7


def test_the_arms_of_a_stopped_study_end_with_it(
    local_uri: str, store: SqlStore, study: Study
) -> None:
    write_live(local_uri, store, study)
    store.set_study_state(study.name, "stopped")
    sink = MlflowSink(local_uri)
    sink.study_started(study)
    sink.study_finished(store.get_study(study.name))
    sink.close(60)
    found = runs(local_uri, study)
    assert found["study"].info.status == found["arm:sgd-cosine"].info.status == "KILLED"
    assert sync(store, study.name, local_uri).unchanged == 7


def test_a_run_that_was_only_begun_is_completed(
    local_uri: str, store: SqlStore, study: Study
) -> None:
    sink = MlflowSink(local_uri)
    sink.study_started(study)
    sink.trial_started(make_trial(0, params={"lr": 0.1, "betas": (0.9, NAN)}))
    sink.close(60)
    begun = runs(local_uri, study)["trial:0"]
    assert (begun.info.status, begun.data.metrics) == ("RUNNING", {})
    report = sync(store, study.name, local_uri)
    assert (report.created, report.completed, report.unchanged) == (4, 1, 2)
    completed = runs(local_uri, study)["trial:0"]
    assert completed.info.run_id == begun.info.run_id
    assert completed.info.status == "FINISHED"


def test_a_write_cut_short_is_completed_without_doubles(
    local_uri: str, store: SqlStore, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_connection(*_arguments: Any, **_more: Any) -> None:
        raise ConnectionError("lost")

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "set_terminated", lose_connection)
        with pytest.raises(BackendError, match="lost"):
            sync(store, study.name, local_uri)
    report = sync(store, study.name, local_uri)
    assert (report.created, report.completed, report.unchanged) == (4, 1, 2)
    client, found = connect(local_uri), runs(local_uri, study)
    assert found["trial:0"].info.status == "FINISHED"
    for n in range(5):
        assert [step for step, _, _ in history(client, found[f"trial:{n}"], "val_acc")] == [10, 20]


@pytest.mark.parametrize("changed", ["metrics", "params"])
def test_a_rerun_replaces_the_run(
    local_uri: str, store: SqlStore, study: Study, changed: str
) -> None:
    sync(store, study.name, local_uri)
    first = runs(local_uri, study)["trial:2"]
    trial = store.get_trial(study.name, 2).model_copy(update={"params": {"lr": 0.1}})
    if changed == "params":
        trial = trial.model_copy(update={"params": {"lr": 0.2}})
    store.save_outcome(study.name, trial, [make_evaluation(15)])
    report = sync(store, study.name, local_uri)
    assert (report.created, report.unchanged) == (1, 6)
    run = runs(local_uri, study)["trial:2"]
    assert run.info.run_id != first.info.run_id
    assert [step for step, _, _ in history(connect(local_uri), run, "val_loss")] == [15]


def test_what_a_user_deleted_is_rebuilt(local_uri: str, store: SqlStore, study: Study) -> None:
    sync(store, study.name, local_uri)
    client, found = connect(local_uri), runs(local_uri, study)
    for key in ("trial:4", "arm:sgd-cosine"):
        client.delete_run(found[key].info.run_id)
    report = sync(store, study.name, local_uri)
    assert (report.created, report.completed, report.unchanged) == (2, 4, 1)
    rebuilt = runs(local_uri, study)
    arm_id = rebuilt["arm:sgd-cosine"].info.run_id
    assert {rebuilt[f"trial:{n}"].data.tags["mlflow.parentRunId"] for n in range(5)} == {arm_id}


def test_everything_is_rebuilt_in_an_empty_mlflow(
    local_uri: str, store: SqlStore, study: Study, empty_mlflow_database: Path
) -> None:
    sync(store, study.name, local_uri)
    Path(local_uri.removeprefix("sqlite:///")).write_bytes(empty_mlflow_database.read_bytes())
    assert sync(store, study.name, local_uri).created == 7


def test_runs_beyond_one_page_are_found(
    local_uri: str, store: SqlStore, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RUNS_PER_PAGE", 2)
    assert sync(store, study.name, local_uri).created == 7
    assert sync(store, study.name, local_uri).unchanged == 7


def test_more_metrics_than_one_call_takes(
    mlflow_server: MlflowServer, store: SqlStore, study: Study
) -> None:
    uri = mlflow_server.uri
    evaluations = [make_evaluation(step) for step in range(1, 1002)]
    store.save_outcome(study.name, make_finished_trial(0), evaluations, LRS)
    sync(store, study.name, uri)
    client, run = connect(uri), runs(uri, study)["trial:0"]
    for key in ("train_loss", "grad_norm", "val_loss", "val_acc"):
        assert [step for step, _, _ in history(client, run, key)] == list(range(1, 1002))


def test_two_writers_at_once_leave_no_doubles(
    local_uri: str, store: SqlStore, study: Study
) -> None:
    sync(store, study.name, local_uri)
    first, second = (RunWriter(connect(local_uri), study, None) for _ in range(2))
    trial = make_finished_trial(9)
    for writer in (first, second):
        writer.write(trial_view(study, trial, [make_evaluation(10)]))
    store.save_outcome(study.name, trial, [make_evaluation(10)])
    report = sync(store, study.name, local_uri)
    assert (report.created, report.completed, report.unchanged) == (0, 1, 8)
    assert len(runs(local_uri, study)) == 8


def test_a_study_of_a_deleted_name_gets_an_experiment_of_its_own(
    local_uri: str, store: SqlStore, study: Study
) -> None:
    client = connect(local_uri)
    created = []
    for day in range(3):  # the name is free, held by a live experiment, held by deleted ones
        again = study.model_copy(update={"created_at": NOW + timedelta(days=day)})
        store.delete_study(study.name)
        store.create_study(again)
        sync(store, study.name, local_uri)
        experiment = find_experiment(client, again)
        assert experiment is not None
        created.append(experiment.name)
        if day > 0:
            client.delete_experiment(experiment.experiment_id)
    assert created[0] == study.name
    assert created[1] == f"{study.name} (2026-03-02 12:30:15)"
    sync(store, study.name, local_uri)  # the user deleted the third, which is asked for again
    experiment = find_experiment(client, again)
    assert experiment is not None
    assert experiment.name == f"{study.name} (2026-03-03 12:30:15) 2"
    assert experiment.tags["tuner.study"] == study.name


def test_any_name_of_a_metric_or_parameter_is_accepted(
    local_uri: str, store: SqlStore, study: Study
) -> None:
    names = ["bad/../name", "a@b#c", "..", "日本", "x" * 300]
    trial = make_finished_trial(0, params=dict.fromkeys(names, "y" * 7000))
    metrics = {name: float(n) for n, name in enumerate(names)}
    store.save_outcome(study.name, trial, [make_evaluation(10, metrics=metrics)])
    sync(store, study.name, local_uri)
    run = runs(local_uri, study)["trial:0"]
    assert max(map(len, run.data.params.values())) == 6000
    assert {v for k, v in run.data.metrics.items() if k.startswith("val_")} == {0, 1, 2, 3, 4}
    assert sync(store, study.name, local_uri).unchanged == 7


def test_nothing_appears_in_the_current_folder(
    tmp_path: Path, local_uri: str, store: SqlStore, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "current"
    folder.mkdir()
    monkeypatch.chdir(folder)
    sync(store, study.name, local_uri)
    assert list(folder.iterdir()) == []
    assert list((tmp_path / "home" / "artifacts").glob("*/*/artifacts/study.json"))
    elsewhere = tmp_path / "elsewhere"
    other = make_study("other")
    store.create_study(other)
    sync(store, "other", local_uri, artifact_root=str(elsewhere))
    assert list(elsewhere.glob("*/*/artifacts/study.json"))


def test_the_sample_study_covers_every_state(store: SqlStore, study: Study) -> None:
    states = {trial.state for trial in store.trials(study.name)}
    assert states | {"running"} == set(get_args(TrialState))
