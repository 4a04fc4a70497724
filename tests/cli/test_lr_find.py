"""`tuner lr-find` with real workers, a real database and a real MLflow store."""

from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.cli.conftest import Result, Tuner
from tuner.paths import Home
from tuner.records import LrCurve
from tuner.store.sql import open_store

KEYS = [
    *("optimizer", "suggested_lr", "low", "high", "diverges_at", "flags", "reason"),
    *("interval_low", "interval_high", "safe_low", "safe_high", "axis", "method", "run_steps"),
    *("cost", "curve", "runs", "optima"),
]
BROKEN = "def build():\n    raise ValueError('no data here')\n"


def test_json_plot_database_and_mlflow_agree(tuner: Tuner, tmp_path: Path) -> None:
    tuner("init")
    result = tuner(
        *("lr-find", "mytask:build", "-o", "sgd", "-o", "adamw", "--run-steps", "100"),
        *("--plot", "lr.png", "--json"),
    )
    assert result.code == 0, result.err
    sgd, adamw = result.json["results"]
    assert list(sgd) == list(adamw) == KEYS
    assert (sgd["optimizer"], adamw["optimizer"]) == ("sgd", "adamw")
    assert sgd["low"] < sgd["suggested_lr"] < sgd["high"] < sgd["diverges_at"]
    assert (tmp_path / "lr.png").read_bytes().startswith(b"\x89PNG")

    suggested = [sgd["suggested_lr"], adamw["suggested_lr"]]
    curves = stored_curves(tmp_path)
    assert [curves[number].suggested_lr for number in (0, 1)] == suggested
    client = MlflowClient(Home(tmp_path / ".tuner").mlflow_uri)
    [experiment] = client.search_experiments(filter_string="name LIKE 'lr-find-mytask.build-%'")
    runs = client.search_runs([experiment.experiment_id])
    sent = [run.data.metrics.get("lr_range.suggested_lr") for run in runs]
    assert sorted(filter(None, sent)) == sorted(suggested)


def stored_curves(folder: Path) -> dict[int, LrCurve]:
    """The curves of the only study of a folder's local database."""
    with closing(open_store(Home(folder / ".tuner").storage_url)) as store:
        [study] = store.list_studies()
        return store.lr_curves(study.name)


def lr_find(tuner: Tuner, *arguments: str) -> Result:
    """A short test without MLflow."""
    return tuner("--mlflow-uri", "none", "lr-find", *arguments, "--run-steps", "120")


@pytest.mark.slow
def test_the_suggestion_and_its_reason_are_printed(tuner: Tuner, tmp_path: Path) -> None:
    tuner("init")
    result = lr_find(tuner, "mytask:build", "-o", "sgd", "--plot", "lr.svg")
    assert result.code == 0, result.err
    assert "<svg" in (tmp_path / "lr.svg").read_text()
    [curve] = stored_curves(tmp_path).values()
    assert curve.reason in result.out
    assert f"suggested learning rate {curve.suggested_lr:.3g}" in result.out


@pytest.mark.slow
def test_an_error_of_the_users_code_is_shown_with_its_place(tuner: Tuner, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    result = lr_find(tuner, "broken:build")
    assert (result.code, result.out) == (1, "")
    assert "tuner: error: broken:build raised ValueError: no data here" in result.err
    assert "broken.py" in result.err
    assert "bug" not in result.err
    assert not (tmp_path / ".tuner" / "tuner.db").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["mytask:build", "-o", "adamm"], "adamm"),
        (["mytask:buidl"], "buidl"),
        (["mytask:build", "--plot", "nowhere/lr.png"], "--plot nowhere/lr.png"),
        (["mytask:build", "--plot", "lr.xyz"], "--plot lr.xyz: allowed: .png, .svg, .pdf"),
    ],
)
def test_a_slip_is_a_usage_error(tuner: Tuner, arguments: list[str], says: str) -> None:
    tuner("init")
    result = lr_find(tuner, *arguments)
    assert (result.code, result.out) == (2, "")
    assert says in result.err


@pytest.mark.slow
def test_without_an_mlflow_server_the_curves_are_still_stored(tuner: Tuner, tmp_path: Path) -> None:
    tuner("init")
    result = tuner(
        *("--mlflow-uri", "http://127.0.0.1:1", "lr-find", "mytask:build", "--run-steps", "120")
    )
    assert result.code == 0, result.err
    repeated = "tuner --mlflow-uri http://127.0.0.1:1 mlflow sync lr-find-mytask.build"
    assert repeated in result.err
