"""Model-centric training."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "training",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("version", sa.String(length=128), nullable=False),
        sa.Column("owner", sa.String(length=128), nullable=False),
        sa.Column("created", sa.Float(precision=53), nullable=False),
        sa.Column("client_config", sa.JSON(), nullable=False),
        sa.Column("server_config", sa.JSON(), nullable=False),
        sa.Column("seed", sa.String(length=64), nullable=False),
        sa.Column("secret", sa.String(length=64), nullable=False),
        sa.Column("state", sa.JSON(), nullable=False),
        sa.Column("registered", sa.Integer(), nullable=False),
        sa.Column("cursor", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_training"),
        sa.UniqueConstraint("name", "version", name="uq_training_name_version"),
    )
    op.create_table(
        "training_checkpoint",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("training_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("blob", sa.String(length=64), nullable=False),
        sa.Column("nbytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("created", sa.Float(precision=53), nullable=False),
        sa.ForeignKeyConstraint(["training_id"], ["training.id"], name="fk_training_checkpoint_training_id"),
        sa.PrimaryKeyConstraint("id", name="pk_training_checkpoint"),
        sa.UniqueConstraint("training_id", "number", name="uq_training_checkpoint_training_id_number"),
    )
    op.create_table(
        "training_device",
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("training_id", sa.Integer(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("registered", sa.Float(precision=53), nullable=False),
        sa.Column("seen", sa.Float(precision=53), nullable=False),
        sa.Column("slow", sa.Boolean(), nullable=False),
        sa.Column("last", sa.Integer(), nullable=True),
        sa.Column("asked", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["training_id"], ["training.id"], name="fk_training_device_training_id"),
        sa.PrimaryKeyConstraint("number", name="pk_training_device"),
        sa.UniqueConstraint("id", name="uq_training_device_id"),
        sa.UniqueConstraint("training_id", "rank", name="uq_training_device_training_id_rank"),
    )
    op.create_index("ix_training_device_seen", "training_device", ["training_id", "seen"], unique=False)
    op.create_table(
        "training_plan",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("training_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("blob", sa.String(length=64), nullable=False),
        sa.Column("nbytes", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["training_id"], ["training.id"], name="fk_training_plan_training_id"),
        sa.PrimaryKeyConstraint("id", name="pk_training_plan"),
        sa.UniqueConstraint("training_id", "name", name="uq_training_plan_training_id_name"),
    )
    op.create_table(
        "training_place",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("training_id", sa.Integer(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("device", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=True),
        sa.Column("at", sa.Float(precision=53), nullable=False),
        sa.Column("number", sa.Integer(), nullable=True),
        sa.Column("samples", sa.BigInteger(), nullable=True),
        sa.Column("sha256", sa.String(length=64), nullable=True),
        sa.Column("blob", sa.String(length=64), nullable=True),
        sa.ForeignKeyConstraint(["device"], ["training_device.number"], name="fk_training_place_device"),
        sa.ForeignKeyConstraint(["training_id"], ["training.id"], name="fk_training_place_training_id"),
        sa.PrimaryKeyConstraint("id", name="pk_training_place"),
        sa.UniqueConstraint("key", name="uq_training_place_key"),
        sa.UniqueConstraint("training_id", "sequence", "device", name="uq_training_place_training_id_sequence_device"),
        sa.UniqueConstraint("training_id", "sequence", "number", name="uq_training_place_training_id_sequence_number"),
    )
    op.create_index("ix_training_place_device", "training_place", ["device"], unique=False)


def downgrade() -> None:
    """Drop them; trainings, their checkpoints and devices are forgotten."""
    op.drop_index("ix_training_place_device", table_name="training_place")
    op.drop_table("training_place")
    op.drop_table("training_plan")
    op.drop_index("ix_training_device_seen", table_name="training_device")
    op.drop_table("training_device")
    op.drop_table("training_checkpoint")
    op.drop_table("training")
