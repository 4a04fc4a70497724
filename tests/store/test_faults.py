"""Real faults of a database: killed writers, damaged files, full disks, restarting servers."""

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.servers import PostgresServer, free_port
from tests.store.samples import (
    NOW,
    make_evaluation,
    make_finished_trial,
    make_lease,
    make_study,
    make_trial,
)
from tuner.errors import BackendError, UsageError
from tuner.store.schema import check
from tuner.store.sql import SqlStore, open_store


def start_python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_python(code: str, *arguments: str) -> str:
    process = start_python(code, *arguments)
    output, _ = process.communicate(timeout=60)
    return output


WRITER = """
    import sys
    from tests.store.samples import *
    from tuner.store.sql import open_store
    store = open_store(sys.argv[1])
    for number in range(100_000):
        evaluations = [make_evaluation(step) for step in range(1, 6)]
        store.save_outcome("digits", make_finished_trial(number), evaluations, [0.1] * 50)
        print(number, flush=True)
"""


def test_what_was_saved_survives_kill_9(store: SqlStore, url: str) -> None:
    store.create_study(make_study())
    store.close()
    process = start_python(WRITER, url)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) == 25:
            os.kill(process.pid, signal.SIGKILL)
            break
    saved = max([25, *(int(line) for line in process.stdout.read().split())])
    process.wait()
    process.stdout.close()
    store = open_store(url)
    numbers = [trial.number for trial in store.trials("digits")]
    assert numbers in (list(range(saved + 1)), list(range(saved + 2)))
    for number in numbers:
        assert len(store.evaluations("digits", number)) == 5
        assert len(store.step_lrs("digits", number)) == 50
    store.save_trial("digits", make_trial(0))  # the file is not locked by the dead
    store.close()
    assert check(url).ok


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_is_removed_takes_no_more_writes(tmp_path: Path, replaced: bool) -> None:
    path = tmp_path / "tuner.db"
    store = open_store(f"sqlite:///{path}")
    store.create_study(make_study())
    path.rename(tmp_path / "elsewhere.db")
    if replaced:
        path.touch()
    with pytest.raises(BackendError, match=r"tuner\.db was removed or replaced"):
        store.save_trial("digits", make_finished_trial(0))
    with pytest.raises(BackendError, match=r"tuner\.db was removed or replaced"):
        store.trials("digits")
    path.unlink(missing_ok=True)
    (tmp_path / "elsewhere.db").rename(path)
    store.save_trial("digits", make_finished_trial(0))  # it is back
    assert len(store.trials("digits")) == 1
    store.close()


def fill(path: Path) -> None:
    store = open_store(f"sqlite:///{path}")
    store.create_study(make_study())
    for number in range(50):
        store.save_trial("digits", make_finished_trial(number))
    store.close()


def overwrite_the_middle(path: Path) -> None:
    fill(path)
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(data)


def damage_a_document(path: Path) -> None:
    fill(path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE tuner_study SET spec = '{\"half'")
    connection.close()


def write_text(path: Path) -> None:
    path.write_text("a report, not a database\n" * 100)


def make_folder(path: Path) -> None:
    path.mkdir()


def below_a_file(path: Path) -> None:
    path.parent.rmdir()
    path.parent.write_text("")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (overwrite_the_middle, "is damaged"),
        (damage_a_document, "holds a damaged row"),
        (write_text, "is not a SQLite database"),
        (make_folder, "cannot be opened"),
        (below_a_file, "cannot create its folder: File exists"),
    ],
)
def test_a_damaged_file_is_one_clear_line(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    path = tmp_path / "home" / "tuner.db"
    path.parent.mkdir()
    damage(path)
    with pytest.raises(BackendError, match=message) as caught:
        open_store(f"sqlite:///{path}", retry_seconds=1).list_studies()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 4


READ_ONLY = """
    import os, sys
    from tests.store.samples import *
    from tuner.errors import BackendError
    from tuner.store.sql import open_store
    open_store(sys.argv[1]).close()  # imports everything while it can be read
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    for url in sys.argv[2:]:
        try:
            open_store(url, retry_seconds=1).create_study(make_study("other"))
        except BackendError as error:
            print(error)
"""


def test_a_read_only_folder_is_one_clear_line(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Root may write anywhere, so root tries as `nobody`."""
    folder = Path(tmp_path_factory.mktemp("readonly"))
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o755)
    fill(folder / "filled.db")
    folder.chmod(0o555)
    (folder / "filled.db").chmod(0o444)
    names = ("filled.db", "new.db", "sub/new.db")
    urls = [f"sqlite:///{folder}/{name}" for name in names]
    output = run_python(READ_ONLY, f"sqlite:///{tmp_path}/writable.db", *urls)
    folder.chmod(0o755)
    lines = output.splitlines()
    assert len(lines) == 3, output
    for name, line in zip(names, lines, strict=True):
        assert f"{folder}/{name}" in line
        assert any(words in line for words in ("read-only", "cannot be opened", "Permission"))


FULL = """
    import resource, signal, sys
    from tests.store.samples import *
    from tuner.errors import BackendError
    from tuner.store.sql import open_store
    store = open_store(sys.argv[1])
    store.create_study(make_study())
    store.save_trial("digits", make_trial(0))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    try:
        for number in range(1, 1000):
            store.save_outcome("digits", make_finished_trial(number), [], [0.1] * 1000)
    except BackendError as error:
        print(number, error)
"""


def test_a_full_disk_is_one_clear_line_and_loses_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/tuner.db"
    lines = run_python(FULL, url).splitlines()
    assert len(lines) == 1, lines
    number, line = lines[0].split(" ", 1)
    assert f"{tmp_path}/tuner.db cannot" in line
    assert "full" in line
    store = open_store(url)
    assert [trial.number for trial in store.trials("digits")] == list(range(int(number)))
    store.close()


def test_a_database_locked_for_a_while_is_waited_for(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/tuner.db", retry_seconds=30)
    other = sqlite3.connect(tmp_path / "tuner.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    unlock = threading.Timer(1.0, lambda: other.execute("COMMIT"))
    unlock.start()
    store.create_study(make_study())
    unlock.join()
    other.close()
    store.close()


def test_a_database_locked_for_ever_is_one_clear_line(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/tuner.db", retry_seconds=0.1)
    other = sqlite3.connect(tmp_path / "tuner.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(BackendError, match=r"tuner\.db is locked by another process"):
        store.create_study(make_study())
    assert store.list_studies() == []  # readers are not stopped
    other.close()
    store.close()


def test_a_restart_of_postgresql_is_survived(
    postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(postgres.create_database("restart"), retry_seconds=30)
    store.create_study(make_study())
    postgres.stop()
    restart = threading.Timer(0.5, postgres.start)
    restart.start()
    store.save_outcome("digits", make_finished_trial(0), [make_evaluation()])
    assert store.acquire_lease(make_lease(), NOW) is None
    restart.join()
    assert len(store.trials("digits")) == 1
    assert len([r for r in caplog.records if "trying again for 30 s" in r.message]) == 1
    store.close()


def test_connections_that_the_server_ends_are_replaced(postgres: PostgresServer) -> None:
    store = open_store(postgres.create_database("ended"))
    store.create_study(make_study())

    def end_connections() -> None:
        for _ in range(10):
            postgres.run_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'tuner'"
            )

    thread = threading.Thread(target=end_connections)
    thread.start()
    count = 0
    while thread.is_alive():
        store.save_outcome("digits", make_trial(count), [make_evaluation()])
        count += 1
    thread.join()
    assert len(store.trials("digits")) == count > 0
    store.close()


def test_what_waiting_cannot_cure_fails_at_once(caplog: pytest.LogCaptureFixture) -> None:
    server = PostgresServer("right", ["--auth=scram-sha-256"])
    try:
        server.start()
        for user, database, message in [
            ("tuner:hidden", "tuner", "authentication failed"),
            ("postgres:right", "missing", "does not exist"),
        ]:
            url = f"postgresql://{user}@127.0.0.1:{server.port}/{database}"
            with pytest.raises(BackendError, match=message) as caught:
                open_store(url, retry_seconds=60)
            assert f"127.0.0.1:{server.port}/{database}" in str(caught.value)
            assert "hidden" not in str(caught.value)
            assert "right" not in str(caught.value)
        assert "trying again" not in caplog.text
    finally:
        server.remove()


def test_a_server_that_is_not_there_is_one_line_without_the_password(
    caplog: pytest.LogCaptureFixture,
) -> None:
    port = free_port()
    url = f"postgresql://me:hidden@127.0.0.1:{port}/tuner?password=alsohidden"
    with pytest.raises(BackendError, match=f"127.0.0.1:{port}/tuner") as caught:
        open_store(url, retry_seconds=0.5)
    for text in (str(caught.value), caplog.text):
        assert "hidden" not in text
    assert "\n" not in str(caught.value)
    assert f"127.0.0.1:{port}/tuner does not answer; trying again for 0 s" in caplog.text


@pytest.mark.parametrize(
    "url",
    ["", "tuner.db", "mysql://me:hidden@host/x", "sqlite://", "postgresql://me:hidden@host:x/y"],
)
def test_a_bad_url_is_a_usage_error(url: str) -> None:
    with pytest.raises(UsageError, match="use sqlite:///") as caught:
        open_store(url)
    assert "hidden" not in str(caught.value)


def test_a_study_deleted_under_its_coordinator_is_named(store: SqlStore) -> None:
    store.create_study(make_study())
    store.save_trial("digits", make_trial(0))
    store.delete_study("digits")
    with pytest.raises(UsageError, match="no study 'digits'"):
        store.save_outcome("digits", make_finished_trial(0), [make_evaluation()])
