"""Databases that every round starts from: making them costs more than a copy."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import psycopg

from backup_server.db.engine import create_engine
from backup_server.db.migrate import upgrade
from tests.chaos.parts import Postgres
from tests.support.postgres import find_programs


def make_template(directory: Path) -> None:
    """`jobs.db`; `postgres`, a cluster with the same tables; `false_clock.so`."""
    directory.mkdir()
    directory.chmod(0o755)
    source, library = Path(__file__).with_name("false_clock.c"), directory / "false_clock.so"
    compiler = ["gcc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*compiler, "-o", str(library), str(source)], check=True)
    engine = create_engine(f"sqlite:///{directory / 'jobs.db'}")
    upgrade(engine)
    engine.dispose()
    programs = find_programs()
    assert programs, "PostgreSQL's programs: run tools/setup.sh test"
    cluster = directory / "postgres"
    cluster.mkdir(mode=0o700)
    identity = pwd.getpwnam("postgres")
    os.chown(cluster, identity.pw_uid, identity.pw_gid)
    subprocess.run(
        [str(programs / "initdb"), "-D", str(cluster), "-U", "vmhaul", "-A", "trust", "-N", "-E", "UTF8"],
        check=True, capture_output=True, cwd="/", user=identity.pw_uid, group=identity.pw_gid, extra_groups=[],
    )  # fmt: skip
    sockets = tempfile.mkdtemp(prefix="vmhaul-pg-")
    os.chown(sockets, identity.pw_uid, identity.pw_gid)
    # On a Unix socket alone: here the machine's network is everybody's.
    server = subprocess.Popen(
        [str(programs / "postgres"), "-D", str(cluster), "-h", "", "-k", sockets, "-c", "fsync=off"],
        cwd="/", user=identity.pw_uid, group=identity.pw_gid, extra_groups=[],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        _make_database(sockets)
    finally:
        server.terminate()
        server.wait(30)
        shutil.rmtree(sockets, ignore_errors=True)


def _make_database(sockets: str) -> None:
    from tests.chaos.stand import wait_for

    def connects() -> bool:
        try:
            with psycopg.connect(
                host=sockets, user="vmhaul", dbname="postgres", autocommit=True
            ) as connection:
                connection.execute(f"CREATE DATABASE {Postgres.DATABASE}")
                return True
        except psycopg.OperationalError:
            return False

    wait_for("PostgreSQL answers", connects, 30)
    engine = create_engine(f"postgresql+psycopg://vmhaul@/{Postgres.DATABASE}?host={sockets}")
    upgrade(engine)
    engine.dispose()
