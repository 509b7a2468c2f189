"""Bringing the schema up to date, in process, from the migrations in this package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from backup_server.errors import SettingsError

_MIGRATIONS: Final = Path(__file__).parent / "migrations"
_LOCK: Final = 0x766D6861756C  # "vmhaul": PostgreSQL advisory lock, so that two servers take turns


def _config(connection: sa.Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    if connection is not None:
        config.attributes["connection"] = connection
    return config


def head_revision() -> str:
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None
    return head


def current_revision(engine: sa.Engine) -> str | None:
    """Revision of the database's schema; None before the first upgrade."""
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def upgrade(engine: sa.Engine, revision: str = "head") -> None:
    """Run all migrations that are missing up to `revision`, in one transaction.

    Raises SettingsError when the database was written by a newer release.
    """
    with _without_foreign_keys(engine) as connection, connection.begin():
        if connection.dialect.name == "postgresql":
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        current = MigrationContext.configure(connection).get_current_revision()
        known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
        if current is not None and current not in known:
            raise SettingsError(
                f"the job database has schema {current}, which this release does not know; "
                "start the newer release that wrote it, or restore a copy of the database"
            )
        if current != head_revision():
            command.upgrade(_config(connection), revision)
            if connection.dialect.name == "sqlite":
                broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
                if broken:
                    raise SettingsError(
                        f"the job database has rows that refer to nothing ({broken[0]}); bring back a copy of it"
                    )


@contextmanager
def _without_foreign_keys(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A connection for changing tables. SQLite changes a table by writing it anew and dropping the old
    one, and dropping deletes what refers to its rows, unless foreign keys are off; that has to be said
    before the transaction begins (https://www.sqlite.org/lang_altertable.html, section 7).
    """
    with engine.connect() as connection:
        if connection.dialect.name != "sqlite":
            yield connection
            return
        driver = connection.connection.cursor()
        driver.execute("PRAGMA foreign_keys=OFF")
        try:
            yield connection
        finally:
            driver.execute("PRAGMA foreign_keys=ON")
            driver.close()
