"""Jobs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "job",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("submitter", sa.String(length=128), nullable=False),
        sa.Column("upload", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("change", sa.Integer(), nullable=False),
        sa.Column("created", sa.Float(precision=53), nullable=False),
        sa.Column("began", sa.Float(precision=53), nullable=True),
        sa.Column("ended", sa.Float(precision=53), nullable=True),
        sa.Column("document", sa.JSON(), nullable=False),
        sa.Column("machine", sa.JSON(), nullable=False),
        sa.Column("log", sa.JSON(), nullable=False),
        sa.Column("history", sa.JSON(), nullable=False),
        sa.Column("work", sa.String(length=64), nullable=True),
        sa.Column("checkpoint", sa.String(length=64), nullable=True),
        sa.Column("result", sa.String(length=64), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_job"),
        sa.UniqueConstraint("submitter", "upload", name="uq_job_submitter_upload"),
    )
    op.create_index("ix_job_state", "job", ["state"], unique=False)
    op.create_index("ix_job_submitter", "job", ["submitter"], unique=False)


def downgrade() -> None:
    """Drop it; the jobs are forgotten."""
    op.drop_index("ix_job_submitter", table_name="job")
    op.drop_index("ix_job_state", table_name="job")
    op.drop_table("job")
