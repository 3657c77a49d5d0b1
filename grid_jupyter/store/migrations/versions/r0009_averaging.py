"""Averaging plans of trainings."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Trainings so far have none."""
    op.add_column("training", sa.Column("averaging", sa.String(length=64), nullable=True))


def downgrade() -> None:
    """Forget them."""
    op.drop_column("training", "averaging")
