"""Names of models stay with who first hosted under them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Names so far are of whoever hosted under them first."""
    op.create_table(
        "training_name",
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("owner", sa.String(length=128), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_training_name")),
    )
    op.execute(
        "INSERT INTO training_name (name, owner) SELECT name, owner FROM training AS one "
        "WHERE NOT EXISTS (SELECT 1 FROM training WHERE training.name = one.name AND training.id < one.id)"
    )


def downgrade() -> None:
    """Forget it."""
    op.drop_table("training_name")
