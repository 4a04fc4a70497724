"""The narrow protocol that every store keeps, and its conformance suite tests.

Contract: one coordinator per study writes (the lease says which), anyone may read at any time.
Every call is one transaction: after it returns its rows survive `kill -9`. Calls may come from
several threads. A backend that cannot be reached is retried for some seconds and then raises
`BackendError` with the host but never the password.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Protocol

from tuner.records import Evaluation, LrCurve, Record, Study, StudyState, Trial


class Lease(Record):
    """Who coordinates a study; it expires so that a dead coordinator blocks nobody for long."""

    study: str
    owner: str  # unique per coordinator process
    host: str
    pid: int
    expires_at: datetime


class Store(Protocol):
    """Studies, trials, evaluations, LR curves and leases."""

    def create_study(self, study: Study) -> None:
        """Insert; raises `UsageError` when the name is taken."""

    def get_study(self, name: str) -> Study:
        """Read one; raises `UsageError` with near-miss names when there is none."""

    def list_studies(self) -> list[Study]:
        """All studies, oldest first."""

    def set_study_state(self, name: str, state: StudyState, answer: str | None = None) -> None:
        """Move a study on; `answer=None` leaves the answer as it is."""

    def set_study_spec(self, name: str, spec: dict[str, Any]) -> None:
        """Replace the specification by one whose open numbers are filled in."""

    def delete_study(self, name: str) -> None:
        """Remove a study with everything that belongs to it."""

    def request_stop(self, name: str, stop: bool = True) -> None:
        """Ask the study's coordinator, wherever it runs, to stop (or take the request back)."""

    def save_trial(self, study: str, trial: Trial) -> None:
        """Insert or replace the row (study, trial.number)."""

    def save_outcome(
        self,
        study: str,
        trial: Trial,
        evaluations: Sequence[Evaluation],
        lrs: Sequence[float] = (),
        lr_curve: LrCurve | None = None,
    ) -> None:
        """Save a finished trial and all that it measured, in one transaction."""

    def add_evaluations(self, study: str, number: int, evaluations: Sequence[Evaluation]) -> None:
        """Add evaluations of a running trial; one at a known step replaces the older."""

    def trials(self, study: str) -> list[Trial]:
        """All trials by number."""

    def get_trial(self, study: str, number: int) -> Trial:
        """One trial; raises `UsageError` when there is none."""

    def evaluations(self, study: str, number: int) -> list[Evaluation]:
        """A trial's evaluations by step."""

    def step_lrs(self, study: str, number: int) -> list[float]:
        """The learning rate of every step of a trial."""

    def lr_curves(self, study: str) -> dict[int, LrCurve]:
        """The LR curves of a study by trial number."""

    def acquire_lease(self, lease: Lease, now: datetime) -> Lease | None:
        """Take or renew the lease: None on success, else the live lease of another owner."""

    def release_lease(self, study: str, owner: str) -> None:
        """Give the lease back; nothing happens when it is not held by `owner`."""

    def get_lease(self, study: str) -> Lease | None:
        """The lease row, expired or not."""

    def close(self) -> None:
        """Release connections."""
