"""Global options, errors and exit codes."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.cli.conftest import Tuner
from tuner.cli import main as main_module
from tuner.cli.context import Context
from tuner.cli.main import cli
from tuner.cli.render import print_table
from tuner.errors import BackendError, NoCompletedTrialError, TaskError, TunerError, UsageError


def commands(group: click.Command = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of all commands, groups included."""
    yield path
    if isinstance(group, click.Group):
        context = click.Context(group)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            yield from commands(command, (*path, name))


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_help_has_an_example(tuner: Tuner, path: tuple[str, ...]) -> None:
    result = tuner(*path, "--help")
    assert result.code == 0
    examples = result.out.partition("Example")[2]
    assert " ".join(["tuner", *path]) in examples


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_lists_of_commands_show_whole_sentences(tuner: Tuner, path: tuple[str, ...]) -> None:
    listing = tuner(*path, "--help").out.partition("Commands:")[2].partition("Example")[0]
    assert "..." not in listing


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["bd"], "No such command 'bd'"),
        (["db", "chek"], "No such command 'chek'. Did you mean 'check'?"),
        (["db", "check", "--jsn"], "No such option '--jsn'. Did you mean '--json'?"),
        (["init", "a", "b"], "Got unexpected extra argument"),
        (["devices", "--slots", "none"], "'none' is not a valid integer"),
        (["optimizers", "show", "adamm"], "no optimizer 'adamm'; did you mean 'adam'?"),
        (["optimizers", "show", "AdamW"], "no optimizer 'AdamW'; did you mean 'adamw'?"),
    ],
)
def test_a_slip_is_answered_with_what_is_allowed(
    tuner: Tuner, arguments: list[str], says: str
) -> None:
    result = tuner(*arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("tuner: error: ")
    assert says in result.err


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (TunerError("a\nb"), 1, "tuner: error: a\ntuner: error: b\n"),
        (UsageError("bad key"), 2, "tuner: error: bad key\n"),
        (NoCompletedTrialError("none"), 3, "tuner: error: none\n"),
        (BackendError("no answer"), 4, "tuner: error: no answer\n"),
        (
            TaskError("build() raised", "  File x\nE"),
            1,
            "tuner: error: build() raised\n  File x\nE\n",
        ),
        (KeyboardInterrupt(), 130, "tuner: error: interrupted\n"),
        (click.Abort(), 1, "tuner: error: aborted\n"),
    ],
)
def test_each_error_has_its_exit_code_and_one_line(
    tuner: Tuner, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, says: str
) -> None:
    monkeypatch.setattr(main_module, "cli", _command_that_raises(error))
    result = tuner()
    assert (result.code, result.err.lstrip("\n"), result.out) == (code, says, "")


def test_a_bug_shows_its_traceback_but_no_password(
    tuner: Tuner, monkeypatch: pytest.MonkeyPatch
) -> None:
    bug = ZeroDivisionError("at postgresql://ann:s3cret@db/x")
    monkeypatch.setattr(main_module, "cli", _command_that_raises(bug))
    result = tuner()
    assert result.code == 1
    assert "this is a bug" in result.err
    assert "Traceback" in result.err
    assert "postgresql://ann:***@db/x" in result.err
    assert "s3cret" not in result.err


def _command_that_raises(error: BaseException) -> click.Command:
    @click.command()
    def broken() -> None:
        raise error

    return broken


@pytest.fixture
def resolved(monkeypatch: pytest.MonkeyPatch) -> list[Context]:
    """The contexts that a probing command was given."""
    seen: list[Context] = []

    @click.command()
    @click.pass_obj
    def probe(context: Context) -> None:
        seen.append(context)

    monkeypatch.setattr(cli, "get_command", lambda ctx, name: probe)
    return seen


PLACES = ("flag", "environment", "file", "default")


@pytest.mark.parametrize("strongest", PLACES)
def test_flags_before_environment_before_file_before_default(
    tuner: Tuner,
    resolved: list[Context],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    strongest: str,
) -> None:
    given = PLACES[PLACES.index(strongest) :]
    if "file" in given:
        (tmp_path / "tuner.toml").write_text('storage = "sqlite:///file"\nhome = "file"\n')
    if "environment" in given:
        monkeypatch.setenv("TUNER_STORAGE", "sqlite:///environment")
        monkeypatch.setenv("TUNER_HOME", "environment")
    flags = ["--storage", "sqlite:///flag", "--home", "flag"] if "flag" in given else []
    assert tuner(*flags, "db").code == 0
    home = {"default": ".tuner"}.get(strongest, strongest)
    default = f"sqlite:///{tmp_path / '.tuner' / 'tuner.db'}"
    assert str(resolved[0].home.root) == home
    assert resolved[0].storage_url == (
        {"default": default}.get(strongest, f"sqlite:///{strongest}")
    )


def test_none_turns_mlflow_off(tuner: Tuner, resolved: list[Context], tmp_path: Path) -> None:
    tuner("--mlflow-uri", "none", "db")
    tuner("db")
    off, local = (context.mlflow_uri for context in resolved)
    assert off is None
    assert local == f"sqlite:///{tmp_path / '.tuner' / 'mlflow.db'}"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('storag = "x"', "tuner.toml: storag: unknown key; allowed: home, storage, mlflow_uri"),
        ("home = 3", "tuner.toml: home = 3: allowed: text in quotes"),
        ("home =", "tuner.toml: Invalid value"),
    ],
)
def test_a_bad_file_of_defaults_is_named(
    tuner: Tuner, tmp_path: Path, text: str, says: str
) -> None:
    (tmp_path / "tuner.toml").write_text(text)
    result = tuner("db", "check")
    assert result.code == 2
    assert says in result.err


def test_without_a_command_the_help_is_shown(tuner: Tuner) -> None:
    result = tuner()
    assert result.code == 2
    assert result.err.startswith("Usage: tuner")


def launch(code: str, cwd: Path, *arguments: str) -> subprocess.Popen[str]:
    """A real process that runs this."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    process = launch("from tuner.cli.main import main; main()", tmp_path, "config", "schema")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process:
        assert process.stderr.read() == ""
    assert process.returncode == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_real_process(number: signal.Signals, tmp_path: Path) -> None:
    slow = "import signal, time; import tuner.cli.main as m, tuner.cli.db as d\n"
    # a process that was started in the background of a shell ignores the signal
    slow += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    slow += "d.upgrade.callback = lambda **_: (print('up', flush=True), time.sleep(60))\n"
    slow += "m.main(['db', 'upgrade'])"
    with launch(slow, tmp_path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        assert process.stderr.read().strip() == "tuner: error: interrupted"
    assert process.returncode == 130


def test_an_interruption_while_a_library_swallows_it(tmp_path: Path) -> None:
    """What is raised within an import is often lost there."""
    (tmp_path / "library.py").write_text(
        "import time\ntry:\n    print('up', flush=True), time.sleep(60)\n"
        "except BaseException:\n    pass\n"
    )
    slow = "import signal; import tuner.cli.main as m, tuner.cli.db as d\n"
    slow += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    slow += "d.upgrade.callback = lambda **_: __import__('library')\n"
    slow += "m.main(['db', 'upgrade'])"
    with launch(slow, tmp_path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.read().strip() == "tuner: error: interrupted"
    assert process.returncode == 130


def test_a_narrow_terminal_loses_no_character(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("TERM", "xterm")
    print_table(("arm", "best"), [("adamw-warmup_cosine", "0.891672345")])
    assert sorted("".join(click.unstyle(terminal.getvalue()).split())) == sorted(
        "armbestadamw-warmup_cosine0.891672345"
    )


def test_suggestions_repeat_the_options_that_were_typed(
    tuner: Tuner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(context: Context) -> None:
        raise BackendError("left it; `tuner study resume x` goes on, tuner: as `tuner --help` says")

    monkeypatch.setattr(Context, "open_store", fail)
    options = ("--home", "my runs", "--storage", "postgresql://me:secret@host/db")
    told = tuner(*options, "study", "list").err
    repeated = "`tuner --home 'my runs' --storage postgresql://me:***@host/db study resume x` goes"
    assert repeated in told
    assert "tuner: as `tuner --help` says" in told
    monkeypatch.setenv("TUNER_HOME", "elsewhere")
    assert "`tuner study resume x` goes" in tuner("study", "list").err
