"""Run by Alembic: migrate the connection that was handed over, within its transaction."""

from __future__ import annotations

from alembic import context

from grid_jupyter.store.records import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite changes a table by rebuilding it
)
with context.begin_transaction():
    context.run_migrations()
