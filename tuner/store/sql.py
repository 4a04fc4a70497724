"""The store on SQLite or PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any, TypeVar

from sqlalchemy import Connection, Row, delete, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from tuner.errors import UsageError
from tuner.records import Evaluation, LrCurve, Record, Study, StudyState, Trial
from tuner.store.base import Lease
from tuner.store.engine import RETRY_SECONDS, Database, names_missing_parent
from tuner.store.models import (
    Base,
    EvaluationRow,
    LeaseRow,
    LrCurveRow,
    StepLrsRow,
    StudyRow,
    TrialRow,
)
from tuner.store.schema import ensure_current

T = TypeVar("T")
R = TypeVar("R", bound=Record)

# Both dialects have the same ON CONFLICT clause but no common type for it.
_UPSERTS: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


def open_store(url: str, retry_seconds: float = RETRY_SECONDS) -> SqlStore:
    """Open a database, creating or upgrading its tables first; many processes may do so at once.

    Raises `UsageError` for a bad URL, `BackendError` when it cannot be reached within
    `retry_seconds`, is damaged, or was written by a newer version.
    """
    store = SqlStore(url, retry_seconds)
    try:
        ensure_current(store.database)
    except BaseException:
        store.close()
        raise
    return store


class SqlStore:
    """`tuner.store.base.Store` on a database whose tables exist (see `open_store`)."""

    def __init__(self, url: str, retry_seconds: float = RETRY_SECONDS) -> None:
        self.database = Database(url, retry_seconds)

    # -- studies ---------------------------------------------------------------------------------

    def create_study(self, study: Study) -> None:
        """Insert; raises `UsageError` when the name is taken."""

        def work(connection: Connection) -> None:
            connection.execute(insert(StudyRow), [_row(study)])

        try:
            self.database.write(work)
        except IntegrityError:
            raise UsageError(f"a study named {study.name!r} exists already") from None

    def get_study(self, name: str) -> Study:
        """Read one; raises `UsageError` with near-miss names when there is none."""

        def work(connection: Connection) -> Study:
            row = connection.execute(select(StudyRow).where(StudyRow.name == name)).one_or_none()
            if row is None:
                raise _unknown_study(connection, name)
            return _record(Study, row)

        return self.database.read(work)

    def list_studies(self) -> list[Study]:
        """All studies, oldest first."""
        query = select(StudyRow).order_by(StudyRow.created_at, StudyRow.name)
        return self.database.read(lambda c: [_record(Study, row) for row in c.execute(query)])

    def set_study_state(self, name: str, state: StudyState, answer: str | None = None) -> None:
        """Move a study on; `answer=None` leaves the answer as it is."""
        answers = {} if answer is None else {"answer": answer}
        self._update_study(name, state=state, **answers)

    def set_study_spec(self, name: str, spec: dict[str, Any]) -> None:
        """Replace the specification by one whose open numbers are filled in."""
        self._update_study(name, spec=spec)

    def request_stop(self, name: str, stop: bool = True) -> None:
        """Ask the study's coordinator, wherever it runs, to stop (or take the request back)."""
        self._update_study(name, stop_requested=stop)

    def _update_study(self, name: str, **values: Any) -> None:
        change = update(StudyRow).where(StudyRow.name == name)

        def work(connection: Connection) -> None:
            changed = connection.execute(change.values(updated_at=datetime.now(UTC), **values))
            if changed.rowcount == 0:
                raise _unknown_study(connection, name)

        self.database.write(work)

    def delete_study(self, name: str) -> None:
        """Remove a study with everything that belongs to it; raises `UsageError`."""

        def work(connection: Connection) -> None:
            deleted = connection.execute(delete(StudyRow).where(StudyRow.name == name))
            if deleted.rowcount == 0:
                raise _unknown_study(connection, name)

        self.database.write(work)

    # -- trials ----------------------------------------------------------------------------------

    def save_trial(self, study: str, trial: Trial) -> None:
        """Insert or replace the row (study, trial.number)."""
        self._write_children(study, lambda c: _upsert(c, TrialRow, [_row(trial, study=study)]))

    def save_outcome(
        self,
        study: str,
        trial: Trial,
        evaluations: Sequence[Evaluation],
        lrs: Sequence[float] = (),
        lr_curve: LrCurve | None = None,
    ) -> None:
        """Save a finished trial and all that it measured, in place of what was known of it."""
        key = {"study": study, "number": trial.number}

        def work(connection: Connection) -> None:
            _upsert(connection, TrialRow, [_row(trial, study=study)])
            for model in (EvaluationRow, StepLrsRow, LrCurveRow):
                of_trial = (model.study == study) & (model.number == trial.number)
                connection.execute(delete(model).where(of_trial))
            _upsert(connection, EvaluationRow, [_row(e, **key) for e in evaluations])
            if len(lrs):
                connection.execute(insert(StepLrsRow), [{**key, "lrs": lrs}])
            if lr_curve is not None:
                connection.execute(insert(LrCurveRow), [_row(lr_curve, **key)])

        self._write_children(study, work)

    def add_evaluations(self, study: str, number: int, evaluations: Sequence[Evaluation]) -> None:
        """Add evaluations of a running trial; one at a known step replaces the older."""
        rows = [_row(e, study=study, number=number) for e in evaluations]
        self._write_children(study, lambda c: _upsert(c, EvaluationRow, rows))

    def trials(self, study: str) -> list[Trial]:
        """All trials by number; raises `UsageError` when there is no such study."""
        query = select(TrialRow).where(TrialRow.study == study).order_by(TrialRow.number)
        return self._read_children(
            study, lambda c: [_record(Trial, row) for row in c.execute(query)]
        )

    def get_trial(self, study: str, number: int) -> Trial:
        """One trial; raises `UsageError` when there is none."""
        query = select(TrialRow).where(TrialRow.study == study, TrialRow.number == number)
        row = self._read_children(study, lambda c: c.execute(query).one_or_none())
        if row is None:
            raise UsageError(f"study {study!r} has no trial {number}")
        return _record(Trial, row)

    def evaluations(self, study: str, number: int) -> list[Evaluation]:
        """A trial's evaluations by step."""
        query = (
            select(EvaluationRow)
            .where(EvaluationRow.study == study, EvaluationRow.number == number)
            .order_by(EvaluationRow.step)
        )
        return self.database.read(lambda c: [_record(Evaluation, row) for row in c.execute(query)])

    def step_lrs(self, study: str, number: int) -> list[float]:
        """The learning rate of every step of a trial; empty when none were saved."""
        query = select(StepLrsRow.lrs).where(StepLrsRow.study == study, StepLrsRow.number == number)
        lrs: Sequence[float] | None = self.database.read(lambda c: c.scalars(query).one_or_none())
        return list(lrs or ())

    def lr_curves(self, study: str) -> dict[int, LrCurve]:
        """The LR curves of a study by trial number."""
        query = select(LrCurveRow).where(LrCurveRow.study == study).order_by(LrCurveRow.number)
        return self.database.read(
            lambda c: {row.number: _record(LrCurve, row) for row in c.execute(query)}
        )

    # -- leases ----------------------------------------------------------------------------------

    def acquire_lease(self, lease: Lease, now: datetime) -> Lease | None:
        """Take or renew the lease: None on success, else the live lease of another owner."""

        def work(connection: Connection) -> Lease | None:
            free = or_(LeaseRow.owner == lease.owner, LeaseRow.expires_at <= now)
            _upsert(connection, LeaseRow, [_row(lease)], where=free)
            # A refused upsert has locked the row on PostgreSQL too, so this reads what it saw.
            held = _read_lease(connection, lease.study)
            return None if held is None or held.owner == lease.owner else held

        return self._write_children(lease.study, work)

    def release_lease(self, study: str, owner: str) -> None:
        """Give the lease back; nothing happens when it is not held by `owner`."""
        held = (LeaseRow.study == study) & (LeaseRow.owner == owner)
        self.database.write(lambda c: c.execute(delete(LeaseRow).where(held)))

    def get_lease(self, study: str) -> Lease | None:
        """The lease row, expired or not."""
        return self.database.read(lambda c: _read_lease(c, study))

    def close(self) -> None:
        """Release connections."""
        self.database.close()

    # -- helpers ---------------------------------------------------------------------------------

    def _write_children(self, study: str, work: Callable[[Connection], T]) -> T:
        try:
            return self.database.write(work)
        except IntegrityError as error:
            if not names_missing_parent(error):
                raise
            self.get_study(study)  # raises when it was deleted under the feet of its coordinator
            raise UsageError(f"study {study!r} has no such trial") from None

    def _read_children(self, study: str, work: Callable[[Connection], T]) -> T:
        def checked(connection: Connection) -> T:
            known = select(StudyRow.name).where(StudyRow.name == study)
            if connection.execute(known).one_or_none() is None:
                raise _unknown_study(connection, study)
            return work(connection)

        return self.database.read(checked)


def _row(record: Record, **key: Any) -> dict[str, Any]:
    return {**record.model_dump(), **key}


def _record(kind: type[R], row: Row[Any]) -> R:
    values = row._mapping
    return kind.model_validate({field: values[field] for field in kind.model_fields})


def _upsert(
    connection: Connection, model: type[Base], rows: Iterable[dict[str, Any]], where: Any = None
) -> None:
    """Insert rows; one whose key exists is replaced (if `where` holds for the existing row)."""
    if not (rows := list(rows)):
        return
    table = model.__table__
    statement = _UPSERTS[connection.dialect.name](table)
    keys = [column.name for column in table.primary_key]
    values = {c.name: statement.excluded[c.name] for c in table.columns if c.name not in keys}
    connection.execute(
        statement.on_conflict_do_update(index_elements=keys, set_=values, where=where), rows
    )


def _read_lease(connection: Connection, study: str) -> Lease | None:
    row = connection.execute(select(LeaseRow).where(LeaseRow.study == study)).one_or_none()
    return None if row is None else _record(Lease, row)


def _unknown_study(connection: Connection, name: str) -> UsageError:
    names = list(connection.execute(select(StudyRow.name)).scalars())
    near = get_close_matches(name, names, n=3)
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    return UsageError(f"there is no study {name!r}{hint}")
