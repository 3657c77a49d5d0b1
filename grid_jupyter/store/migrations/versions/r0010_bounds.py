"""What bounds the devices of a training: whom their tokens are for, and that idle ones are forgotten."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

ALL = 1_000_000_000
"""The most that keep_checkpoints may be."""


def upgrade() -> None:
    """Of devices so far it is not known. Trainings so far keep all of their checkpoints, as they did."""
    op.add_column("training", sa.Column("forgotten", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("training_device", sa.Column("subject", sa.String(length=64), nullable=True))
    training = sa.table("training", sa.column("id", sa.Integer), sa.column("server_config", sa.JSON))
    known = op.get_bind()
    for number, config in known.execute(sa.select(training.c.id, training.c.server_config)).all():
        kept = {"keep_checkpoints": ALL, **config}
        known.execute(sa.update(training).where(training.c.id == number).values(server_config=kept))


def downgrade() -> None:
    """Forget it."""
    op.drop_column("training_device", "subject")
    op.drop_column("training", "forgotten")
