"""`tuner`: the global options, the table of commands, and what each error looks like."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType

import click

from tuner import __version__
from tuner.cli import hints
from tuner.cli.context import read_config, resolve
from tuner.cli.lazy import LazyGroup
from tuner.errors import INTERRUPTED, TaskError, TunerError

COMMANDS = {
    "lr-find": "tuner.cli.lr_find:lr_find",
    "study": "tuner.cli.study:study",
    "trial": "tuner.cli.trial:trial",
    "optimizers": "tuner.cli.optimizers:optimizers",
    "mlflow": "tuner.cli.mlflow:mlflow",
    "db": "tuner.cli.db:db",
    "devices": "tuner.cli.devices:devices",
    "doctor": "tuner.cli.doctor:doctor",
    "init": "tuner.cli.init:init",
    "config": "tuner.cli.config:config",
}

EPILOG = """\b
Examples:
  tuner init
  tuner lr-find studies.digits:build --optimizer adamw
  tuner study start studies/digits.toml
  tuner study compare digits

\b
Options come before environment variables, these before ./tuner.toml (keys home, storage,
mlflow_uri), and that before the defaults.

\b
Exit codes:
  0    it worked
  1    it failed
  2    a wrong argument, option or study file
  3    a study ended without a completed trial
  4    a database or tracking server cannot be reached
  130  interrupted, by Ctrl-C or SIGTERM
"""


@click.group(
    cls=LazyGroup,
    table=COMMANDS,
    epilog=EPILOG,
    no_args_is_help=True,
    context_settings={"max_content_width": 100},
)
@click.version_option(__version__, prog_name="tuner")
@click.option(
    "--home",
    envvar="TUNER_HOME",
    default=".tuner",
    show_default="./.tuner",
    show_envvar=True,
    help="Folder of everything local: database, MLflow store, checkpoints, logs, reports.",
)
@click.option(
    "--storage",
    envvar="TUNER_STORAGE",
    metavar="URL",
    show_default="sqlite in --home",
    show_envvar=True,
    help="Study database: sqlite:///FILE or postgresql://USER@HOST/NAME.",
)
@click.option(
    "--mlflow-uri",
    envvar="TUNER_MLFLOW_URI",
    metavar="URI",
    show_default="sqlite in --home",
    show_envvar=True,
    help="MLflow tracking server, or 'none' to do without.",
)
@click.option("-v", "--verbose", count=True, help="Say more; twice for debugging.")
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
@click.pass_context
def cli(
    context: click.Context,
    home: str,
    storage: str | None,
    mlflow_uri: str | None,
    verbose: int,
    quiet: bool,
) -> None:
    """Which optimizer and schedule, with which settings, and how sure are we?"""
    hints.remember(context)
    verbosity = -1 if quiet else verbose
    logging.basicConfig(stream=sys.stderr, format="tuner: %(message)s", level=logging.WARNING)
    logging.getLogger("tuner").setLevel(_log_level(verbosity))
    context.obj = resolve(home, storage, mlflow_uri, verbosity)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code, also after SIGTERM."""
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's & ignores it
        signal.signal(signal.SIGINT, _interrupt)
    sys.exit(run(arguments))


def _terminate(number: int, frame: FrameType | None) -> None:
    os.write(2, b"tuner: error: interrupted\n")
    os._exit(INTERRUPTED)


def _interrupt(number: int, frame: FrameType | None) -> None:
    # Libraries that are being imported swallow exceptions, and go on half imported.
    inner = frame
    while inner is not None:
        if inner.f_code.co_filename.startswith("<frozen importlib"):
            _terminate(number, frame)
        inner = inner.f_back
    signal.default_int_handler(number, frame)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Every error is told on stderr."""
    hints.forget()
    try:
        # Without standalone mode click hands its own errors to us, so all look alike.
        code = cli.main(
            arguments, prog_name="tuner", standalone_mode=False, default_map=read_config()
        )
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()  # its message is the whole help
        return error.exit_code
    except click.ClickException as error:
        _say(error.format_message(), hint=_usage_hint(error))
        return error.exit_code
    except (click.Abort, KeyboardInterrupt) as error:
        by_hand = isinstance(error, KeyboardInterrupt) or isinstance(
            error.__cause__, KeyboardInterrupt
        )
        _say("interrupted" if by_hand else "aborted")
        return INTERRUPTED if by_hand else 1
    except TaskError as error:
        _say(str(error), hint=error.traceback)
        return error.exit_code
    except TunerError as error:
        _say(str(error))
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output went away (`| head`); Python must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception:
        _say("this is a bug; please report it with the lines below", hint=traceback.format_exc())
        return 1


def _say(message: str, hint: str = "") -> None:
    """One line for each line of a message, then the hint as it is; never a password."""
    lines = [f"tuner: error: {line}" for line in message.splitlines()]
    click.echo(hints.complete("\n".join([*lines, *filter(None, [hint.rstrip()])])), err=True)


def _usage_hint(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f"Try '{context.command_path} --help'." if context else ""


def _log_level(verbosity: int) -> int:
    levels = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO}
    return levels.get(verbosity, logging.DEBUG)
