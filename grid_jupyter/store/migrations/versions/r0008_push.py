"""Push: where devices can be reached, and the outbox."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "push_address",
        sa.Column("device", sa.Integer(), nullable=False),
        sa.Column("training_id", sa.Integer(), nullable=False),
        sa.Column("token", sa.Text(), nullable=True),
        sa.Column("digest", sa.String(length=64), nullable=True),
        sa.Column("listens", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["training_device.number"], name="fk_push_address_device"),
        sa.ForeignKeyConstraint(["training_id"], ["training.id"], name="fk_push_address_training_id"),
        sa.PrimaryKeyConstraint("device", name="pk_push_address"),
        sa.UniqueConstraint("training_id", "digest", name="uq_push_address_training_id_digest"),
    )
    op.create_index("ix_push_address_training_id", "push_address", ["training_id"], unique=False)
    op.create_table(
        "push_notice",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(length=256), nullable=False),
        sa.Column("training_id", sa.Integer(), nullable=False),
        sa.Column("type", sa.String(length=32), nullable=False),
        sa.Column("facts", sa.JSON(), nullable=False),
        sa.Column("device", sa.Integer(), nullable=True),
        sa.Column("audience", sa.String(length=16), nullable=True),
        sa.Column("sequence", sa.Integer(), nullable=True),
        sa.Column("since", sa.Float(precision=53), nullable=True),
        sa.Column("cursor", sa.Integer(), nullable=False),
        sa.Column("origin", sa.String(length=16), nullable=False),
        sa.Column("created", sa.Float(precision=53), nullable=False),
        sa.Column("expires", sa.Float(precision=53), nullable=False),
        sa.Column("due", sa.Float(precision=53), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("by", sa.String(length=16), nullable=False),
        sa.Column("said", sa.String(length=256), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["training_device.number"], name="fk_push_notice_device"),
        sa.ForeignKeyConstraint(["training_id"], ["training.id"], name="fk_push_notice_training_id"),
        sa.PrimaryKeyConstraint("id", name="pk_push_notice"),
        sa.UniqueConstraint("key", name="uq_push_notice_key"),
    )
    op.create_index("ix_push_notice_state_due", "push_notice", ["state", "due"], unique=False)
    op.create_index("ix_push_notice_training_id_state", "push_notice", ["training_id", "state"], unique=False)
    op.create_index("ix_push_notice_device_state", "push_notice", ["device", "state"], unique=False)


def downgrade() -> None:
    """Drop them; devices that wait to be woken are not woken any more."""
    op.drop_index("ix_push_notice_device_state", table_name="push_notice")
    op.drop_index("ix_push_notice_training_id_state", table_name="push_notice")
    op.drop_index("ix_push_notice_state_due", table_name="push_notice")
    op.drop_table("push_notice")
    op.drop_index("ix_push_address_training_id", table_name="push_address")
    op.drop_table("push_address")
