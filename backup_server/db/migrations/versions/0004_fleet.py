"""What release 0.4.0 adds: managed servers, traffic rules, load of datastores, windows and chains of jobs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def _id() -> sa.Column[str]:
    return sa.Column("id", sa.String(), nullable=False)


def _name(name: str = "name") -> sa.Column[str]:
    return sa.Column(name, sa.String(), nullable=False)


def _json(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.JSON(), nullable=False)


def _at(name: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def upgrade() -> None:
    op.create_table(
        "managed_servers",
        _id(),
        _name(),
        _name("kind"),
        _name("address"),
        sa.Column("port", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        _name("username"),
        sa.Column("credential_id", sa.String(), nullable=True),
        _name("host_key"),
        _json("facts"),
        _at("created_at"),
        sa.ForeignKeyConstraint(
            ["credential_id"],
            ["credentials.id"],
            name=op.f("fk_managed_servers_credential_id_credentials"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_managed_servers")),
        sa.UniqueConstraint("name", name=op.f("uq_managed_servers_name")),
    )
    op.create_table(
        "traffic_rules",
        _id(),
        _name(),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        _json("source"),
        _json("target"),
        sa.Column(
            "rate_bytes_per_s", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True
        ),
        sa.Column("encrypt", sa.Boolean(), nullable=False),
        _json("options"),
        _at("created_at"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_traffic_rules")),
        sa.UniqueConstraint("name", name=op.f("uq_traffic_rules_name")),
    )
    op.create_table(
        "datastore_loads",
        _id(),
        sa.Column("vcenter_id", sa.String(), nullable=False),
        _name("datastore"),
        _json("settings"),
        sa.Column("read_latency_ms", sa.Double(), nullable=True),
        _at("measured_at", nullable=True),
        _name("problem"),
        _json("control"),
        sa.ForeignKeyConstraint(
            ["vcenter_id"],
            ["vcenters.id"],
            name=op.f("fk_datastore_loads_vcenter_id_vcenters"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_datastore_loads")),
        sa.UniqueConstraint("vcenter_id", "datastore", name="uq_datastore_loads_datastore"),
    )
    with op.batch_alter_table("proxies") as table:
        table.add_column(sa.Column("server_id", sa.String(), nullable=True))
        table.add_column(sa.Column("broker_credential_id", sa.String(), nullable=True))
        table.add_column(sa.Column("state_note", sa.String(), nullable=False, server_default=""))
        table.create_foreign_key(
            op.f("fk_proxies_server_id_managed_servers"), "managed_servers", ["server_id"], ["id"]
        )
        table.create_foreign_key(
            op.f("fk_proxies_broker_credential_id_credentials"),
            "credentials",
            ["broker_credential_id"],
            ["id"],
        )
    with op.batch_alter_table("jobs") as table:
        table.add_column(sa.Column("window", sa.JSON(), nullable=True))
        table.add_column(sa.Column("after_job_id", sa.String(), nullable=True))
        table.create_foreign_key(
            op.f("fk_jobs_after_job_id_jobs"), "jobs", ["after_job_id"], ["id"], ondelete="SET NULL"
        )
        table.create_index(op.f("ix_jobs_after_job_id"), ["after_job_id"])
    with op.batch_alter_table("sessions") as table:
        table.add_column(sa.Column("stop_reason", sa.String(), nullable=False, server_default=""))
    with op.batch_alter_table("tasks") as table:
        table.add_column(sa.Column("continues_task_id", sa.String(), nullable=True))
        table.add_column(
            sa.Column(
                "rate_bytes_per_s", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True
            )
        )
        table.drop_index("ix_tasks_state")
        table.create_index("ix_tasks_state", ["state", "created_at"])
        table.create_index(
            "ix_tasks_not_before",
            ["not_before"],
            sqlite_where=sa.text("not_before IS NOT NULL"),
            postgresql_where=sa.text("not_before IS NOT NULL"),
        )
