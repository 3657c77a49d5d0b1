"""Strategies of trainings: their state, and reports that count in a later cycle than their own."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Reports so far count in the cycle that they are of, under a strategy that keeps nothing."""
    op.add_column("training", sa.Column("buffers", sa.JSON(), nullable=False, server_default="[]"))
    op.add_column("training_checkpoint", sa.Column("state", sa.JSON(), nullable=False, server_default="{}"))
    with op.batch_alter_table("training_place") as table:
        table.add_column(sa.Column("counted", sa.Integer(), nullable=True))
        table.drop_constraint("uq_training_place_training_id_sequence_device", type_="unique")
        table.drop_constraint("uq_training_place_training_id_sequence_number", type_="unique")
    op.execute("UPDATE training_place SET counted = sequence WHERE number IS NOT NULL")
    with op.batch_alter_table("training_place") as table:
        table.create_unique_constraint(
            "uq_training_place_training_id_counted_number", ["training_id", "counted", "number"]
        )
    op.create_index("ix_training_place_cycle", "training_place", ["training_id", "sequence", "device"], unique=False)


def downgrade() -> None:
    """Forget the state of strategies. Fails where a device has had several places in one cycle."""
    op.drop_index("ix_training_place_cycle", table_name="training_place")
    with op.batch_alter_table("training_place") as table:
        table.drop_constraint("uq_training_place_training_id_counted_number", type_="unique")
        table.drop_column("counted")
        table.create_unique_constraint(
            "uq_training_place_training_id_sequence_device", ["training_id", "sequence", "device"]
        )
        table.create_unique_constraint(
            "uq_training_place_training_id_sequence_number", ["training_id", "sequence", "number"]
        )
    op.drop_column("training_checkpoint", "state")
    op.drop_column("training", "buffers")
