"""What bounds the devices of a training: whom their tokens are for, and that idle ones are forgotten."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Of devices so far it is not known."""
    op.add_column("training", sa.Column("forgotten", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("training_device", sa.Column("subject", sa.String(length=64), nullable=True))


def downgrade() -> None:
    """Forget it."""
    op.drop_column("training_device", "subject")
    op.drop_column("training", "forgotten")
