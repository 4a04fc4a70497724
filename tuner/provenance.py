"""What a trial ran on: code version, package versions, host."""

from __future__ import annotations

import platform
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from tuner.paths import mask_password

_PACKAGES = ("optimizer-tuner", "torch", "numpy", "scipy", "optuna")


def _git(folder: Path, *arguments: str) -> str | None:
    """Standard output of a git command; None when git or the repository is missing."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def code_version(folder: Path) -> dict[str, Any]:
    """The git commit of a folder and whether tracked files differ from it; None = no repository."""
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": bool(changes) if commit else None}


def package_versions() -> dict[str, str]:
    """Versions of what decides a result; a package that is not installed is left out."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def collect(task: str, folder: Path) -> dict[str, Any]:
    """Everything about where and with what a study runs."""
    return {
        "task": task,
        "code": code_version(folder),
        "packages": package_versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "command": mask_password(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]])),
    }
