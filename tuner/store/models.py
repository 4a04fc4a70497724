"""The tables. Every column mirrors a field of a record in `tuner.records`, under the same name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import numpy as np
from pydantic_core import to_jsonable_python
from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    LargeBinary,
    MetaData,
    Text,
    TypeDecorator,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

REVISION = "0001"  # the newest migration; a test compares
PREFIX = "tuner_"  # of every table of ours; others in the same database are never touched
VERSION_TABLE = "tuner_alembic_version"  # Optuna and MLflow both use alembic's default name


def storable_text(text: str) -> str:
    """Replace what PostgreSQL refuses inside text: NUL and lone surrogates."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def storable_json(value: Any) -> Any:
    """Rewrite to strict JSON; NaN and infinities become `{"$float": "nan"}`."""
    match value:
        case float() if not math.isfinite(value):
            return {"$float": str(value)}
        case str():
            return storable_text(value)
        case dict():
            return {storable_text(key): storable_json(item) for key, item in value.items()}
        case list():
            return [storable_json(item) for item in value]
        case _:
            return value


def restore_json(value: Any) -> Any:
    """Undo `storable_json`."""
    match value:
        case {"$float": str(number), **others} if not others:
            return float(number)
        case dict():
            return {key: restore_json(item) for key, item in value.items()}
        case list():
            return [restore_json(item) for item in value]
        case _:
            return value


class CleanText(TypeDecorator[str]):
    """Text of any origin, such as the message of a user's exception."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Make it storable."""
        return None if value is None else storable_text(value)


class ExactFloat(TypeDecorator[float]):
    """A double that keeps NaN apart from NULL on every database.

    SQLite turns a bound NaN into NULL, but its columns hold text as well as numbers.
    """

    impl = Double
    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Any:
        """Write NaN as text on SQLite, past the conversion to float that Double would add."""
        if dialect.name != "sqlite":
            return super().bind_processor(dialect)
        return lambda value: "NaN" if value is not None and math.isnan(value) else value

    def process_result_value(self, value: Any, dialect: Dialect) -> float | None:
        """Read numbers and the text NaN."""
        return None if value is None else float(value)


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC; SQLite, which knows no time zones, stores it without one."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert to UTC; raises `ValueError` for a time without a zone."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return an aware UTC time."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class JsonDocument(TypeDecorator[Any]):
    """A JSON document that reads back exactly as it was written.

    On PostgreSQL this is JSON and not JSONB: JSONB reorders keys and turns 1e16 into an integer,
    so that a study resumed there would differ from one on SQLite.
    """

    impl = JSON(none_as_null=True)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        """Make it strict JSON."""
        return storable_json(to_jsonable_python(value, inf_nan_mode="constants"))

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        """Bring NaN and infinities back."""
        return restore_json(value)


class DoubleArray(TypeDecorator[Sequence[float]]):
    """Many doubles as little-endian bytes: exact, and 8 bytes a number."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: Sequence[float] | None, dialect: Dialect) -> bytes | None:
        """Pack."""
        return None if value is None else np.asarray(value, dtype="<f8").tobytes()

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> list[float] | None:
        """Unpack; raises `ValueError` when bytes are missing."""
        return None if value is None else [float(x) for x in np.frombuffer(value, dtype="<f8")]


StudyKey = Annotated[str, mapped_column(ForeignKey("tuner_study.name", ondelete="CASCADE"))]
Json = Annotated[Any, mapped_column(JsonDocument())]
OptionalJson = Annotated[Any, mapped_column(JsonDocument(), nullable=True)]


def _of_trial() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(
        ["study", "number"], ["tuner_trial.study", "tuner_trial.number"], ondelete="CASCADE"
    )


class Base(DeclarativeBase):
    """All tables of the store."""

    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(referred_table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it from the class
        str: CleanText(),
        float: ExactFloat(),
        int: BigInteger(),
        datetime: UtcDateTime(),
    }


class StudyRow(Base):
    """A `Study`."""

    __tablename__ = "tuner_study"

    name: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str]
    spec: Mapped[Json]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    answer: Mapped[str]
    stop_requested: Mapped[bool]
    provenance: Mapped[Json]


class TrialRow(Base):
    """A `Trial` of a study."""

    __tablename__ = "tuner_trial"

    study: Mapped[StudyKey] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    arm: Mapped[str]
    stage: Mapped[str]
    seed: Mapped[int]
    state: Mapped[str]
    point: Mapped[Json]
    params: Mapped[Json]
    configuration: Mapped[Json]
    stop_rules: Mapped[Json]
    length: Mapped[float]
    value: Mapped[float | None]
    metrics: Mapped[Json]
    steps: Mapped[int]
    examples: Mapped[int]
    wall_seconds: Mapped[float]
    attempts: Mapped[int]
    micro_batch: Mapped[int | None]
    device: Mapped[str]
    host: Mapped[str]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    failure: Mapped[OptionalJson]
    provenance: Mapped[Json]
    info: Mapped[Json]


class EvaluationRow(Base):
    """An `Evaluation` of a trial."""

    __tablename__ = "tuner_evaluation"
    __table_args__ = (_of_trial(),)

    study: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    examples: Mapped[int]
    seconds: Mapped[float]
    lr: Mapped[float]
    train_loss: Mapped[float]
    grad_norm: Mapped[float]
    metrics: Mapped[Json]


class StepLrsRow(Base):
    """The learning rate of every step of a trial."""

    __tablename__ = "tuner_step_lrs"
    __table_args__ = (_of_trial(),)

    study: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    lrs: Mapped[Annotated[Sequence[float], mapped_column(DoubleArray())]]


class LrCurveRow(Base):
    """The `LrCurve` of a range test."""

    __tablename__ = "tuner_lr_curve"
    __table_args__ = (_of_trial(),)

    study: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    points: Mapped[Json]
    suggested_lr: Mapped[float | None]
    low: Mapped[float | None]
    high: Mapped[float | None]
    diverges_at: Mapped[float | None]
    flags: Mapped[Json]
    reason: Mapped[str]


class LeaseRow(Base):
    """A `Lease`: who coordinates a study."""

    __tablename__ = "tuner_lease"

    study: Mapped[StudyKey] = mapped_column(primary_key=True)
    owner: Mapped[str]
    host: Mapped[str]
    pid: Mapped[int]
    expires_at: Mapped[datetime]
