"""One file with everything a run needs to go on: written atomically, never trusted when read."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch

from tuner.records import Job

_FORMAT = 1
# What may differ between the attempt that wrote a checkpoint and the one that reads it.
_VOLATILE = {"id", "search_path", "checkpoint", "checkpoint_seconds"}


def fingerprint(job: Job) -> str:
    """Identifies the run: jobs with the same fingerprint train bit-equal models."""
    return hashlib.sha256(job.model_dump_json(exclude=_VOLATILE).encode()).hexdigest()


def save(path: Path, job: Job, state: dict[str, Any]) -> str | None:
    """Write a checkpoint; returns a note when that was impossible, because a run can do without."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"format": _FORMAT, "job": fingerprint(job), **state}, temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        _remove(temporary)
        return f"no checkpoint could be saved: {' '.join(str(error).split())[:200]}"
    return None


def load(path: Path, job: Job) -> tuple[dict[str, Any] | None, str | None]:
    """The state that `save` wrote for this job, or None; and a note when a file was not usable."""
    if not path.exists():
        return None, None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch.load raise almost anything
        return None, f"checkpoint ignored: unreadable ({type(error).__name__})"
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        return None, "checkpoint ignored: not written by this version"
    if state.get("job") != fingerprint(job):
        return None, "checkpoint ignored: it belongs to another run"
    return state, None


def remove(path: Path) -> None:
    """Delete the checkpoint of a run that ended."""
    _remove(path)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # a full or read-only disk must not fail a run that is done
        return
