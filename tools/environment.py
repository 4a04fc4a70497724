"""Makes the project's virtual environment, and the lock file that it is made from.

    python3 tools/environment.py setup   make .venv as requirements.lock says (`make setup`)
    python3 tools/environment.py lock    write requirements.lock anew (`make lock`)

Standard library only: it runs before anything is installed.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / ".stamp"  # holds the digest of INPUTS; written last, so its absence means unfinished
INPUTS = (ROOT / "requirements.lock", ROOT / "pyproject.toml")
EXTRAS = "studies,integrations,dev"
# A new torch release changes numbers, and without a pin pip would take it at the next `make lock`.
HELD = ("torch==2.13.0",)
# torch's builds for accelerators pin these themselves; a CPU build has none of them.
OF_TORCH_BUILD = re.compile(r"^(nvidia-(?!ml-py)|cuda-|triton\b)")
HEADER = "# Written by `make lock` (pip freeze of a clean environment); ranges: pyproject.toml\n"


def main(command: str) -> None:
    """Run one command; ends with one line and status 1 when this Python cannot do it."""
    try:
        import ensurepip  # noqa: F401  Debian ships it apart from Python
    except ImportError:
        raise SystemExit(
            f"setup: {sys.executable} has no ensurepip; install python3-venv"
        ) from None
    try:
        {"setup": setup, "lock": lock}[command]()
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"setup: failed ({error.returncode}): {' '.join(error.cmd)}") from None


def setup() -> None:
    """Bring .venv up to date; one process at a time, and from scratch after an interruption."""
    with (ROOT / ".venv.lock").open("w") as lock_file:
        fcntl.flock(lock_file, fcntl.LOCK_EX)
        wanted = digest(INPUTS)
        if STAMP.exists() and STAMP.read_text() == wanted:
            STAMP.touch()
            return
        if not STAMP.exists():
            print("setup: making .venv (a few minutes, once)", flush=True)
            venv.create(VENV, clear=True, symlinks=True, with_pip=True)
        STAMP.unlink(missing_ok=True)
        pip(VENV, "install", "-qq", "--no-compile", "--requirement", str(INPUTS[0]))
        pip(VENV, "install", "-qq", "--no-deps", "--no-build-isolation", "--editable", ".")
        compile_all()
        STAMP.write_text(wanted)


def compile_all() -> None:
    """Compile on all cores, where pip would use one.

    Every worker process of a study imports torch and this project; where PYTHONDONTWRITEBYTECODE is
    set it would compile them each time. Some packages ship files that are no valid Python: those
    are left out.
    """
    folders = (VENV / "lib", ROOT / "optimizers", ROOT / "tuner")
    arguments = ("-m", "compileall", "-qq", "-j", "0", *folders)
    subprocess.run([VENV / "bin" / "python", *arguments], check=False, stdout=subprocess.DEVNULL)


def lock() -> None:
    """Resolve pyproject.toml's ranges in a clean environment and pin the result."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, symlinks=True, with_pip=True)
        requirement = f"{ROOT}[{EXTRAS}]"
        pip(Path(folder), "install", "-qq", "setuptools", *HELD, requirement)
        frozen = pip(Path(folder), "freeze", "--all", "--exclude", "pip", stdout=subprocess.PIPE)
    INPUTS[0].write_text(HEADER + "".join(f"{pin}\n" for pin in pins(frozen.splitlines())))


def pins(frozen: Iterable[str]) -> list[str]:
    """The exact pins in pip's output: no project itself, no local build tags such as `+cpu`."""
    exact = (line for line in frozen if "==" in line and not OF_TORCH_BUILD.match(line))
    return sorted((re.sub(r"\+.*", "", line) for line in exact), key=str.lower)


def digest(paths: Iterable[Path]) -> str:
    """One hash over the contents of files."""
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in paths)).hexdigest()


def pip(environment: Path, *arguments: str, stdout: int | None = None) -> str:
    """Run an environment's pip in the project's root; returns what it printed if captured."""
    command = [str(environment / "bin" / "python"), "-m", "pip", *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, text=True, stdout=stdout).stdout or ""


if __name__ == "__main__":
    main(sys.argv[1])
