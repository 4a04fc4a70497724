"""docker-compose.yml without Docker: its settings, and its commands run as real processes."""

import inspect
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import yaml

from tests.jobs import TASKS
from tests.servers import PostgresServer, free_port, kill_group, start_process, wait_until
from tests.store import test_conformance
from tests.store.samples import make_evaluation, make_finished_trial, make_study, make_trial
from tests.study.specs import study_data, toml_of
from tuner.errors import BackendError
from tuner.service import sync_mlflow
from tuner.store.mlflow import connect, experiment_url, find_experiment, ping, sync
from tuner.store.schema import check
from tuner.store.sink import MlflowSink
from tuner.store.sql import open_store

ROOT = Path(__file__).resolve().parent.parent
COMPOSE = (ROOT / "docker-compose.yml").read_text()
VARIABLE = re.compile(r"\$\{(\w+)([^}]*)\}")
SECRETS = {
    "POSTGRES_PASSWORD": "admin secret $1 'quoted' %",
    "TUNER_DB_PASSWORD": "tuner-secret",
    "MLFLOW_DB_PASSWORD": "mlflow/secret@with:odd'characters",
}


def services(text: str = COMPOSE) -> dict[str, Any]:
    return dict(yaml.safe_load(text)["services"])


def test_everything_is_published_on_this_host_only() -> None:
    ports = [port for service in services().values() for port in service["ports"]]
    assert len(ports) == 2
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in ports)
    assert all("network_mode" not in service for service in services().values())


def test_every_secret_must_be_given() -> None:
    found = VARIABLE.findall(COMPOSE)
    assert {name for name, _ in found} == set(SECRETS)
    assert all(rule.startswith(":?") for _, rule in found)  # empty is refused too
    for service in services().values():
        for name, value in service["environment"].items():
            assert "PASSWORD" not in name or VARIABLE.fullmatch(value)


def test_the_example_has_every_secret_and_no_value() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    settings = [line for line in lines if line and not line.startswith("#")]
    assert settings == [f"{name}=" for name in SECRETS]
    ignored = subprocess.run(["git", "check-ignore", "-q", ".env"], cwd=ROOT, check=False)
    assert ignored.returncode == 0


def test_images_are_pinned() -> None:
    base = re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    images = [service["image"] for service in services().values()]
    assert all(re.search(r":\d+\.\d+", image) for image in (*base, *images))
    lock = (ROOT / "requirements.lock").read_text().lower()
    for package in ("mlflow", "psycopg", "sqlalchemy"):
        assert f"\n{package}==" in lock


def test_data_lives_in_named_volumes() -> None:
    for name, target in [
        ("postgres", "/var/lib/postgresql/data"),
        ("mlflow", "/artifacts"),
    ]:
        volumes = dict(volume.split(":")[:2][::-1] for volume in services()[name]["volumes"])
        assert volumes[target] in yaml.safe_load(COMPOSE)["volumes"]
    assert "--artifacts-destination=/artifacts" in services()["mlflow"]["command"]


@dataclass
class Stack:
    """The services as processes, and what a member of the team sets."""

    postgres: PostgresServer
    storage_url: str
    mlflow_uri: str
    processes: dict[str, subprocess.Popen[bytes]]
    health_checks: dict[str, Callable[[], bool]]
    start_mlflow: Callable[[], None]

    def kill_mlflow(self) -> None:
        """End it as a power cut would."""
        kill_group(self.processes.pop("mlflow"))


def on_this_machine(folder: Path, postgres_port: int, mlflow_port: int) -> dict[str, Any]:
    """The services with their secrets, and free ports and folders in place of the containers'."""
    text = VARIABLE.sub(lambda match: SECRETS[match[1]].replace("'", "''"), COMPOSE)
    text = re.sub(r"(PASSWORD: )(.*)", r"\1'\2'", text)
    for container, host in [
        ("--host=0.0.0.0", "--host=127.0.0.1"),  # as published
        ("@postgres:5432", f"@127.0.0.1:{postgres_port}"),
        ("--port=5432", f"--port={postgres_port}"),
        ("5000", str(mlflow_port)),
        ("/artifacts", str(folder / "artifacts")),
    ]:
        assert container in text
        text = text.replace(container, host)
    return services(text)


def health_check(service: dict[str, Any], environment: dict[str, str]) -> Callable[[], bool]:
    kind, *command = service["healthcheck"]["test"]
    assert kind == "CMD"
    return lambda: subprocess.run(command, env=environment, capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("compose")
    python = folder / "bin" / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    postgres = PostgresServer(
        password=SECRETS["POSTGRES_PASSWORD"],
        initdb_arguments=services()["postgres"]["environment"]["POSTGRES_INITDB_ARGS"].split(),
    )
    mlflow_port = free_port()
    wanted = on_this_machine(folder, postgres.port, mlflow_port)
    path = f"{Path(sys.executable).parent}:{postgres.binaries}:{os.environ['PATH']}"
    environments = {
        name: {**os.environ, "PATH": path, **service["environment"]}
        for name, service in wanted.items()
    }
    checks = {name: health_check(wanted[name], environments[name]) for name in wanted}
    processes: dict[str, subprocess.Popen[bytes]] = {}

    def start_mlflow() -> None:
        command = wanted["mlflow"]["command"]
        processes["mlflow"] = start_process(command, environments["mlflow"], folder)
        wait_until(checks["mlflow"], 120, "MLflow's health")

    try:
        assert not any(check() for check in checks.values())
        processes["postgres"] = postgres.start()
        wait_until(checks["postgres"], 30, "PostgreSQL's health")
        subprocess.run(
            ["sh", ROOT / "docker" / "create-databases.sh"],
            env={
                **environments["postgres"],
                "PGHOST": "127.0.0.1",
                "PGPORT": str(postgres.port),
                "PGPASSWORD": SECRETS["POSTGRES_PASSWORD"],
            },
            check=True,
            stdout=subprocess.DEVNULL,
        )
        start_mlflow()
        yield Stack(
            postgres=postgres,
            storage_url=postgres.url("tuner", "tuner", SECRETS["TUNER_DB_PASSWORD"]),
            mlflow_uri=f"http://127.0.0.1:{mlflow_port}",
            processes=processes,
            health_checks=checks,
            start_mlflow=start_mlflow,
        )
    finally:
        if "mlflow" in processes:
            kill_group(processes["mlflow"])
        postgres.remove()


def connections(process: psutil.Process) -> list[Any]:
    """Of a process that may just have ended, as health checks do."""
    try:
        return process.net_connections()
    except (psutil.NoSuchProcess, FileNotFoundError):
        return []


def test_the_services_are_healthy_and_listen_on_this_host_only(stack: Stack) -> None:
    for name, process in stack.processes.items():
        assert stack.health_checks[name]()
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(True)]
        sockets = [c for member in family for c in connections(member) if c.status == "LISTEN"]
        assert sockets
        assert {connection.laddr.ip for connection in sockets} == {"127.0.0.1"}


def test_each_user_enters_its_own_database_only(stack: Stack) -> None:
    passwords = {"tuner": SECRETS["TUNER_DB_PASSWORD"], "mlflow": SECRETS["MLFLOW_DB_PASSWORD"]}
    for user, password in passwords.items():
        for database in ("tuner", "mlflow", "postgres"):
            address = {"host": "127.0.0.1", "port": stack.postgres.port, "dbname": database}
            if user == database:
                psycopg.connect(user=user, password=password, **address).close()
            else:
                with pytest.raises(psycopg.OperationalError, match="permission denied"):
                    psycopg.connect(user=user, password=password, **address)
            with pytest.raises(psycopg.OperationalError, match="authentication failed"):
                psycopg.connect(user=user, password="wrong", **address)


def status(url: str, host: str) -> int:
    try:
        request = urllib.request.Request(url, headers={"Host": host})
        with urllib.request.urlopen(request, timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_mlflow_answers_to_its_own_names_only(stack: Stack) -> None:
    port = stack.mlflow_uri.rpartition(":")[2]
    page = f"{stack.mlflow_uri}/api/2.0/mlflow/experiments/get?experiment_id=0"
    hosts = [f"mlflow:{port}", f"localhost:{port}", f"127.0.0.1:{port}", "evil.example"]
    assert [status(page, host) for host in hosts] == [200, 200, 200, 403]


CONTRACT = [
    test
    for name, test in vars(test_conformance).items()
    if name.startswith("test_") and list(inspect.signature(test).parameters) == ["store"]
]


def test_the_study_database_keeps_the_contract(stack: Stack) -> None:
    assert len(CONTRACT) > 15
    for test in CONTRACT:
        store = open_store(stack.storage_url)
        for study in store.list_studies():
            store.delete_study(study.name)
        store.create_study(make_study())
        test(store)
        store.close()
    assert check(stack.storage_url).ok


def test_a_study_is_kept_and_shown(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", SECRETS["TUNER_DB_PASSWORD"])
    ping(stack.mlflow_uri)
    study = make_study("team", created_at=datetime.now().astimezone())
    store = open_store(stack.postgres.url("tuner", "tuner"))  # the password is not in the URL
    store.create_study(study)
    sink = MlflowSink(stack.mlflow_uri)
    sink.study_started(study)
    sink.trial_started(make_trial(0))
    store.save_outcome("team", make_finished_trial(0), [make_evaluation()], [0.1])
    sink.trial_finished(study, make_finished_trial(0), [make_evaluation()], [0.1])
    report = tmp_path / "report.html"
    report.write_text("<p>sgd</p>")
    sink.log_report(study, report)
    assert sink.close(60).message == ""
    assert sync(store, "team", stack.mlflow_uri).unchanged == 3
    store.close()
    client = connect(stack.mlflow_uri)
    experiment = experiment_url(stack.mlflow_uri, study).split("/")[-2]
    top = next(r for r in client.search_runs([experiment]) if r.info.run_name == "team")
    assert top.info.artifact_uri.startswith("mlflow-artifacts:/")  # through the server
    downloaded = Path(client.download_artifacts(top.info.run_id, "report.html", str(tmp_path)))
    assert downloaded.read_text() == "<p>sgd</p>"


@pytest.mark.slow
def test_the_command_line_runs_a_study_on_it(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(toml_of(study_data()))
    environment = {
        **os.environ,
        "TUNER_STORAGE": stack.storage_url,
        "TUNER_MLFLOW_URI": stack.mlflow_uri,
        "PYTHONPATH": str(TASKS),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tuner", "study", "start", "small.toml", "--json"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["study"] == "small"
    with closing(open_store(stack.storage_url)) as store:
        rows = [store.get_study("small"), *store.trials("small")]
        report = sync_mlflow("small", store, stack.mlflow_uri)
    assert (report.created, report.completed, report.unchanged) == (0, 0, len(rows) + 2)
    told = done.stdout + done.stderr + "".join(row.model_dump_json() for row in rows)
    assert SECRETS["TUNER_DB_PASSWORD"] not in told
    assert not list(tmp_path.rglob("*.db"))  # nothing is kept on the laptop


@pytest.mark.slow
def test_a_server_killed_in_mid_study_is_repaired_by_sync(stack: Stack, tmp_path: Path) -> None:
    study = make_study("killed", created_at=datetime.now().astimezone())
    store = open_store(f"sqlite:///{tmp_path}/tuner.db")
    store.create_study(study)
    sink = MlflowSink(stack.mlflow_uri)
    sink.study_started(study)
    client = connect(stack.mlflow_uri)
    evaluations = [make_evaluation(step) for step in range(1, 101)]

    def written() -> int:
        experiment = find_experiment(client, study)
        return len(client.search_runs([experiment.experiment_id])) if experiment else 0

    def play(numbers: range) -> None:
        for number in numbers:
            sink.trial_started(make_trial(number))
            store.save_outcome("killed", make_finished_trial(number), evaluations, [0.1] * 100)
            sink.trial_finished(study, make_finished_trial(number), evaluations, [0.1] * 100)

    play(range(12))
    wait_until(lambda: written() >= 4, 60, "the first runs")
    stack.kill_mlflow()
    play(range(12, 20))
    report = sink.close(timeout=60)
    assert report.failed
    assert 0 < report.pending < 41
    assert len(store.trials("killed")) == 20
    with pytest.raises(BackendError):
        sync(store, "killed", stack.mlflow_uri)
    stack.start_mlflow()
    repaired = sync(store, "killed", stack.mlflow_uri)
    assert repaired.created + repaired.completed + repaired.unchanged == 22
    assert repaired.created >= 8
    assert sync(store, "killed", stack.mlflow_uri).unchanged == 22
    store.close()
    runs = client.search_runs([experiment_url(stack.mlflow_uri, study).split("/")[-2]])
    assert len(runs) == 22
    for run in runs:
        if run.data.tags["tuner.key"].startswith("trial:"):
            values = client.get_metric_history(run.info.run_id, "val_loss")
            assert [metric.step for metric in values] == list(range(1, 101))
