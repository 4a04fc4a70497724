"""Alembic's entry: runs migrations on the connection that `tuner.store.schema` hands over."""

from typing import Any, Literal

from alembic import context
from sqlalchemy import TypeDecorator

from tuner.store.models import VERSION_TABLE, Base
from tuner.store.schema import include_name


def render_item(kind: str, item: Any, _context: Any) -> str | Literal[False]:
    """Write the plain type of a column into a new migration, which must outlive our classes."""
    if kind == "type" and isinstance(item, TypeDecorator):
        return f"sa.{item.impl_instance!r}"
    return False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table=VERSION_TABLE,
    include_name=include_name,
    render_item=render_item,
    render_as_batch=True,  # SQLite cannot alter a table in place
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
