"""Mock rows: a version of a data set may name the blob of theirs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add a column to versions of data sets."""
    op.add_column("dataset_version", sa.Column("mock", sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    """Drop it; the blobs of mock rows are for the next sweep."""
    op.drop_column("dataset_version", "mock")
