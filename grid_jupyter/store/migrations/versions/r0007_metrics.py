"""What devices measure in model-centric training."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "training_metrics",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("training_id", sa.Integer(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("worker", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=True),
        sa.Column("figures", sa.JSON(), nullable=False),
        sa.Column("samples", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.Float(precision=53), nullable=False),
        sa.ForeignKeyConstraint(["place"], ["training_place.id"], name="fk_training_metrics_place"),
        sa.ForeignKeyConstraint(["training_id"], ["training.id"], name="fk_training_metrics_training_id"),
        sa.PrimaryKeyConstraint("id", name="pk_training_metrics"),
        sa.UniqueConstraint("place", name="uq_training_metrics_place"),
    )
    op.create_index("ix_training_metrics_training_id", "training_metrics", ["training_id", "id"], unique=False)


def downgrade() -> None:
    """Drop it; what was measured is forgotten."""
    op.drop_index("ix_training_metrics_training_id", table_name="training_metrics")
    op.drop_table("training_metrics")
