"""Alembic's environment: always online, on the connection that `migrate.upgrade` hands over."""

from alembic import context

from backup_server.db.tables import Base

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    # SQLite cannot alter most of a table: Alembic makes a new one and copies.
    render_as_batch=True,
    transactional_ddl=False,  # the caller's transaction is the one
)
context.run_migrations()
