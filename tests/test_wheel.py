"""The wheel works where nothing of the source tree is: modules, migrations, entry point."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("pyproject.toml", "README.md", "optimizers", "tuner")

Run = Callable[..., str]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy to build from: setuptools also packs what an earlier build left in the source tree."""
    folder = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        path = ROOT / name
        copy = shutil.copytree if path.is_dir() else shutil.copy
        copy(path, folder / name)
    return folder


@pytest.fixture(scope="module")
def run(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run a program of an environment that holds the wheel and, beside it, its dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    environment = folder / "env"
    venv.create(environment, symlinks=True)
    pip = _check(sys.executable, "-m", "pip", cwd=source)
    pip("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), ".")
    [wheel] = folder.glob("*.whl")
    python = str(environment / "bin" / "python")
    pip("--python", python, "install", "--quiet", "--no-deps", str(wheel))
    # Only now, or pip would find the project's own installation among the dependencies.
    [site] = (environment / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))

    def call(program: str, *arguments: str) -> str:
        return _check(str(environment / "bin" / program), cwd=folder)(*arguments)

    return call


def _check(*command: str, cwd: Path | None = None) -> Callable[..., str]:
    """A function that runs the command with more arguments and returns what it printed."""
    environ = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    environ.pop("PYTHONPATH", None)

    def call(*arguments: str) -> str:
        done = subprocess.run(
            [*command, *arguments], cwd=cwd, env=environ, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def test_command_line(run: Run) -> None:
    assert "Usage: tuner" in run("tuner", "--help")


def test_migrations(run: Run) -> None:
    run("tuner", "db", "upgrade")
    assert '"ok": true' in run("tuner", "db", "check", "--json")


def test_packages_come_from_the_wheel(run: Run) -> None:
    code = "import optimizers, tuner; print(optimizers.__file__); print(tuner.__file__)"
    places = run("python", "-c", code).splitlines()
    assert all("site-packages" in place and str(ROOT) not in place for place in places)


@pytest.mark.parametrize("package", ["optimizers", "tuner"])
def test_every_file_is_packed(run: Run, source: Path, package: str) -> None:
    code = f"import {package}, pathlib; print(pathlib.Path({package}.__file__).parent)"
    installed = Path(run("python", "-c", code).strip())
    wanted = {path.relative_to(source / package) for path in _files(source / package)}
    assert wanted == {path.relative_to(installed) for path in _files(installed)}


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
