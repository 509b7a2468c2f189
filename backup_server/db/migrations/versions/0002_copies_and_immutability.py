"""What release 0.2.0 adds: copy jobs, storage with credentials, immutability, scheduled verification."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_ONE_OPEN = "uq_sessions_one_open_per_job"


def upgrade() -> None:
    with op.batch_alter_table("repositories") as table:
        table.add_column(sa.Column("storage_credential_id", sa.String(), nullable=True))
        table.add_column(sa.Column("settings", sa.JSON(), nullable=False, server_default="{}"))
        table.add_column(sa.Column("next_check_at", sa.DateTime(timezone=True), nullable=True))
        table.create_foreign_key(
            op.f("fk_repositories_storage_credential_id_credentials"),
            "credentials",
            ["storage_credential_id"],
            ["id"],
        )
        table.create_index(op.f("ix_repositories_next_check_at"), ["next_check_at"])
    with op.batch_alter_table("jobs") as table:
        table.add_column(sa.Column("kind", sa.String(), nullable=False, server_default="backup"))
        table.add_column(sa.Column("source_repository_id", sa.String(), nullable=True))
        table.alter_column("vcenter_id", existing_type=sa.String(), nullable=True)
        table.create_foreign_key(
            op.f("fk_jobs_source_repository_id_repositories"),
            "repositories",
            ["source_repository_id"],
            ["id"],
        )
    with op.batch_alter_table("restore_points") as table:
        table.add_column(sa.Column("source_point_id", sa.String(), nullable=True))
        table.add_column(sa.Column("immutable_until", sa.DateTime(timezone=True), nullable=True))
        table.create_index(op.f("ix_restore_points_source_point_id"), ["source_point_id"])
    # Copy jobs take turns with themselves too.
    op.drop_index(_ONE_OPEN, table_name="sessions")
    where = sa.text("state <> 'finished' AND job_id IS NOT NULL")
    op.create_index(
        _ONE_OPEN, "sessions", ["job_id"], unique=True, sqlite_where=where, postgresql_where=where
    )
