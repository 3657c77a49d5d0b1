"""Sign-off: what owners say about jobs, requests and decisions, the audit log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add a column to data sets, and three tables."""
    op.add_column("dataset", sa.Column("jobs", sa.JSON(none_as_null=True), nullable=True))
    op.create_table(
        "release_request",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(length=128), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("asker", sa.String(length=128), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("binding", sa.String(length=64), nullable=False),
        sa.Column("datasets", sa.JSON(), nullable=False),
        sa.Column("shown", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("review", sa.Boolean(), nullable=False),
        sa.Column("created", sa.Float(precision=53), nullable=False),
        sa.Column("expires", sa.Float(precision=53), nullable=False),
        sa.Column("dialogue", sa.JSON(), nullable=False),
        sa.Column("blob", sa.String(length=64), nullable=True),
        sa.Column("held", sa.JSON(none_as_null=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_release_request"),
        sa.UniqueConstraint("blob", name="uq_release_request_blob"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_release_request_asker", "release_request", ["asker"], unique=False)
    op.create_index("ix_release_request_key", "release_request", ["key"], unique=False)
    op.create_index("ix_release_request_state", "release_request", ["state"], unique=False)
    op.create_table(
        "decision",
        sa.Column("request_id", sa.Integer(), nullable=False),
        sa.Column("owner", sa.String(length=128), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("by", sa.String(length=128), nullable=False),
        sa.Column("at", sa.Float(precision=53), nullable=False),
        sa.Column("expires", sa.Float(precision=53), nullable=False),
        sa.Column("review", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["request_id"], ["release_request.id"], name="fk_decision_request_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("request_id", "owner", name="pk_decision"),
    )
    op.create_table(
        "audit",
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at", sa.Float(precision=53), nullable=False),
        sa.Column("event", sa.String(length=64), nullable=False),
        sa.Column("actor", sa.String(length=128), nullable=False),
        sa.Column("details", sa.Text(), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_audit"),
    )


def downgrade() -> None:
    """Drop them; what was decided is forgotten."""
    op.drop_table("audit")
    op.drop_table("decision")
    op.drop_index("ix_release_request_state", table_name="release_request")
    op.drop_index("ix_release_request_key", table_name="release_request")
    op.drop_index("ix_release_request_asker", table_name="release_request")
    op.drop_table("release_request")
    op.drop_column("dataset", "jobs")
