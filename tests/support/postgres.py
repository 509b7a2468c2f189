"""A PostgreSQL server for tests: in a directory of its own, on a free loopback port, ended by its pid."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import sqlalchemy as sa

from backup_server.db.engine import Database
from tests.support.ports import free_port

START_WAIT_S = 30.0


def find_programs() -> Path | None:
    """Directory of initdb and postgres; None when the machine has none."""
    found = shutil.which("initdb")
    if found:
        return Path(found).parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return versions[-1].parent if versions else None


def _user() -> str | None:
    """PostgreSQL refuses to run as root: then it runs as the user that its package made."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return name
    raise RuntimeError("root needs a user to run PostgreSQL as")


@contextmanager
def postgres_server() -> Iterator[str]:
    """URL (SQLAlchemy, psycopg) of the server's maintenance database."""
    programs = find_programs()
    if programs is None:
        raise RuntimeError("PostgreSQL's programs are not installed: apt install postgresql")
    user = _user()
    identity = pwd.getpwnam(user) if user else None
    directory = Path(tempfile.mkdtemp(prefix="vmhaul-pg-"))
    try:
        if identity is not None:
            os.chown(directory, identity.pw_uid, identity.pw_gid)

        def run_as() -> dict[str, object]:
            if identity is None:
                return {}
            return {"user": identity.pw_uid, "group": identity.pw_gid, "extra_groups": []}

        data = directory / "data"
        subprocess.run(
            [
                str(programs / "initdb"),
                "-D",
                str(data),
                "-U",
                "vmhaul",
                "-A",
                "trust",
                "-N",
                "-E",
                "UTF8",
            ],
            check=True,
            capture_output=True,
            cwd=directory,
            **run_as(),  # type: ignore[call-overload]
        )
        port = free_port()
        log = (directory / "log").open("wb")
        server = subprocess.Popen(
            [
                str(programs / "postgres"), "-D", str(data), "-h", "127.0.0.1", "-p", str(port),
                "-k", str(directory), "-c", "fsync=off", "-c", "full_page_writes=off",
                "-c", "shared_buffers=32MB", "-c", "max_connections=60",
            ],
            stdout=log,
            stderr=log,
            cwd=directory,
            **run_as(),  # type: ignore[call-overload]
        )  # fmt: skip
        try:
            _wait_until_it_answers(port, server, directory / "log")
            yield f"postgresql+psycopg://vmhaul@127.0.0.1:{port}/postgres"
        finally:
            # Nobody wants its data, and some test may have left a connection for which an orderly end would wait.
            server.send_signal(signal.SIGQUIT)
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
            log.close()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _wait_until_it_answers(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_WAIT_S
    while True:
        try:
            with psycopg.connect(host="127.0.0.1", port=port, user="vmhaul", dbname="postgres"):
                return
        except psycopg.OperationalError:
            if server.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"PostgreSQL did not start: {log.read_text()[-2000:]}") from None
            time.sleep(0.05)


def somebody_waits(database: Database) -> bool:
    """Whether a transaction of that database waits for a lock that another one holds."""
    asked = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    with database.read() as s:
        return bool(s.scalar(sa.text(asked)))


def create_database(server_url: str, name: str, *, template: str = "template1") -> str:
    """URL of a new database: empty, or a copy of the template (that nobody is connected to)."""
    url = server_url.replace("postgresql+psycopg://", "postgresql://")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY file_copy')  # type: ignore[call-overload]
    return server_url.rsplit("/", 1)[0] + f"/{name}"


def drop_database(server_url: str, name: str) -> None:
    url = server_url.replace("postgresql+psycopg://", "postgresql://")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')  # type: ignore[call-overload]
