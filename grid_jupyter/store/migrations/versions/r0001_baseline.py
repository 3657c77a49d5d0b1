"""Baseline: settings, accounts, data sets, hosted models, a Network's members."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create every table."""
    op.create_table(
        "dataset",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("owner", sa.String(length=128), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("created", sa.Float(precision=53), nullable=False),
        sa.Column("public_tags", sa.Boolean(), nullable=False),
        sa.Column("compute_users", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("current_version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_dataset"),
    )
    op.create_table(
        "group",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_group"),
        sa.UniqueConstraint("name", name="uq_group_name"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "hosted_model",
        sa.Column("id", sa.String(length=128), nullable=False),
        sa.Column("blob", sa.String(length=64), nullable=False),
        sa.Column("nbytes", sa.BigInteger(), nullable=False),
        sa.Column("allow_download", sa.Boolean(), nullable=False),
        sa.Column("allow_remote_inference", sa.Boolean(), nullable=False),
        sa.Column("mpc", sa.Boolean(), nullable=False),
        sa.Column("owner", sa.String(length=128), nullable=False),
        sa.Column("created", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_hosted_model"),
        sa.UniqueConstraint("blob", name="uq_hosted_model_blob"),
    )
    op.create_table(
        "role",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("can_triage_requests", sa.Boolean(), nullable=False),
        sa.Column("can_edit_settings", sa.Boolean(), nullable=False),
        sa.Column("can_create_users", sa.Boolean(), nullable=False),
        sa.Column("can_create_groups", sa.Boolean(), nullable=False),
        sa.Column("can_edit_roles", sa.Boolean(), nullable=False),
        sa.Column("can_manage_infrastructure", sa.Boolean(), nullable=False),
        sa.Column("can_upload_data", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_role"),
        sa.UniqueConstraint("name", name="uq_role_name"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "setting",
        sa.Column("key", sa.String(length=128), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_setting"),
    )
    op.create_table(
        "account",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("username", sa.String(length=128), nullable=False),
        sa.Column("password_hash", sa.String(length=256), nullable=True),
        sa.Column("role_id", sa.Integer(), nullable=False),
        sa.Column("created", sa.Float(precision=53), nullable=False),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["role_id"], ["role.id"], name="fk_account_role_id"),
        sa.PrimaryKeyConstraint("id", name="pk_account"),
        sa.UniqueConstraint("username", name="uq_account_username"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_account_role_id", "account", ["role_id"], unique=False)
    op.create_table(
        "dataset_version",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("dataset_id", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("blob", sa.String(length=64), nullable=False),
        sa.Column("nbytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("allowed_users", sa.JSON(), nullable=False),
        sa.Column("tensors", sa.JSON(), nullable=False),
        sa.Column("columns", sa.JSON(), nullable=False),
        sa.Column("created", sa.Float(precision=53), nullable=False),
        sa.Column("upload_id", sa.String(length=128), nullable=False),
        sa.ForeignKeyConstraint(
            ["dataset_id"], ["dataset.id"], name="fk_dataset_version_dataset_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_dataset_version"),
        sa.UniqueConstraint("blob", name="uq_dataset_version_blob"),
        sa.UniqueConstraint("dataset_id", "version", name="uq_dataset_version_dataset_id_version"),
        sa.UniqueConstraint("upload_id", name="uq_dataset_version_upload_id"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "grid_node",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("address", sa.String(length=2048), nullable=False),
        sa.Column("account_id", sa.Integer(), nullable=False),
        sa.Column("joined", sa.Float(precision=53), nullable=False),
        sa.Column("last_seen", sa.Float(precision=53), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["account.id"], name="fk_grid_node_account_id"),
        sa.PrimaryKeyConstraint("id", name="pk_grid_node"),
        sa.UniqueConstraint("name", name="uq_grid_node_name"),
    )
    op.create_index("ix_grid_node_account_id", "grid_node", ["account_id"], unique=False)
    op.create_table(
        "invite",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("role", sa.String(length=128), nullable=False),
        sa.Column("username", sa.String(length=128), nullable=True),
        sa.Column("created", sa.Float(precision=53), nullable=False),
        sa.Column("expires", sa.Float(precision=53), nullable=False),
        sa.Column("used_by", sa.Integer(), nullable=True),
        sa.Column("used_at", sa.Float(precision=53), nullable=True),
        sa.ForeignKeyConstraint(["used_by"], ["account.id"], name="fk_invite_used_by"),
        sa.PrimaryKeyConstraint("digest", name="pk_invite"),
    )
    op.create_table(
        "membership",
        sa.Column("account_id", sa.Integer(), nullable=False),
        sa.Column("group_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["account.id"], name="fk_membership_account_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["group_id"], ["group.id"], name="fk_membership_group_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("account_id", "group_id", name="pk_membership"),
    )
    op.create_table(
        "token",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("account_id", sa.Integer(), nullable=False),
        sa.Column("label", sa.String(length=128), nullable=False),
        sa.Column("created", sa.Float(precision=53), nullable=False),
        sa.Column("expires", sa.Float(precision=53), nullable=True),
        sa.Column("revoked", sa.Float(precision=53), nullable=True),
        sa.ForeignKeyConstraint(["account_id"], ["account.id"], name="fk_token_account_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("digest", name="pk_token"),
    )
    op.create_index("ix_token_account_id", "token", ["account_id"], unique=False)


def downgrade() -> None:
    """Drop every table."""
    op.drop_index("ix_token_account_id", table_name="token")
    op.drop_table("token")
    op.drop_table("membership")
    op.drop_table("invite")
    op.drop_index("ix_grid_node_account_id", table_name="grid_node")
    op.drop_table("grid_node")
    op.drop_table("dataset_version")
    op.drop_index("ix_account_role_id", table_name="account")
    op.drop_table("account")
    op.drop_table("setting")
    op.drop_table("role")
    op.drop_table("hosted_model")
    op.drop_table("group")
    op.drop_table("dataset")
