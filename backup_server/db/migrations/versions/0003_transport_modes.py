"""What release 0.3.0 adds: all transport modes, what proxies reach, storage systems."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def _json(name: str, empty: str) -> sa.Column[object]:
    return sa.Column(name, sa.JSON(), nullable=False, server_default=empty)


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.String(), nullable=False, server_default="")


def upgrade() -> None:
    with op.batch_alter_table("proxies") as table:
        table.add_column(_json("settings", "{}"))
        table.add_column(_json("connections", "{}"))
        table.add_column(sa.Column("connections_at", sa.DateTime(timezone=True), nullable=True))
    with op.batch_alter_table("tasks") as table:
        table.add_column(_text("host_moref"))
        table.add_column(_json("facts", "{}"))
    with op.batch_alter_table("restore_points") as table:
        table.add_column(_text("doubt"))
    with op.batch_alter_table("intents") as table:
        table.add_column(sa.Column("task_id", sa.String(), nullable=True))
        table.add_column(_json("details", "{}"))
        table.create_index(op.f("ix_intents_task_id"), ["task_id"])
    op.create_table(
        "storage_systems",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("driver", sa.String(), nullable=False),
        sa.Column("address", sa.String(), nullable=False),
        sa.Column("options", sa.JSON(), nullable=False),
        sa.Column("credential_id", sa.String(), nullable=True),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("volumes", sa.JSON(), nullable=False),
        sa.Column("rescanned_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("problem", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["credential_id"],
            ["credentials.id"],
            name=op.f("fk_storage_systems_credential_id_credentials"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_storage_systems")),
        sa.UniqueConstraint("name", name=op.f("uq_storage_systems_name")),
    )
