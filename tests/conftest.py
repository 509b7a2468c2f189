from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings

from backup_server.db.engine import create_engine
from backup_server.db.migrate import upgrade
from tests.support.groups import GroupScheduling
from tests.support.object_servers import ObjectServer, RgwCluster, start_moto
from tests.support.postgres import create_database, drop_database, postgres_server

# How long an example takes depends on what else the machine does; pytest's own time-out ends what hangs.
settings.register_profile("vmhaul", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("vmhaul")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> GroupScheduling:
    return GroupScheduling(config, log)


DATABASES = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)]
TEMPLATE = "vmhaul_template"


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL server for the whole run; ask for it by `database_url`."""
    with postgres_server() as url:
        yield url


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of an empty job database: the test runs once on SQLite and once on PostgreSQL."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'jobs.db'}"
        return
    server = request.getfixturevalue("postgres_url")
    name = f"t{uuid4().hex}"
    yield create_database(server, name)
    drop_database(server, name)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database file, to be copied: migrating costs more than most tests do."""
    file = tmp_path_factory.mktemp("template") / "jobs.db"
    _migrate(f"sqlite:///{file}")
    return file


@pytest.fixture(scope="session")
def postgres_template(postgres_url: str) -> str:
    """The same on PostgreSQL, by the template's name."""
    _migrate(create_database(postgres_url, TEMPLATE))
    return TEMPLATE


def _migrate(url: str) -> None:
    engine = create_engine(url)
    upgrade(engine)
    engine.dispose()


@pytest.fixture(params=DATABASES)
def migrated_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a job database with its tables, on SQLite and on PostgreSQL."""
    if request.param == "sqlite":
        file = tmp_path / "jobs.db"
        shutil.copyfile(request.getfixturevalue("sqlite_template"), file)
        return f"sqlite:///{file}"
    server = request.getfixturevalue("postgres_url")
    # Not dropped: the whole server goes at the end of the run.
    template = request.getfixturevalue("postgres_template")
    return create_database(server, f"t{uuid4().hex}", template=template)


@pytest.fixture(scope="session")
def moto_server() -> Iterator[ObjectServer]:
    """An S3 server for the whole run; make a bucket of your own in it."""
    server = start_moto()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def ceph_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RgwCluster]:
    """Ceph's S3 gateway for the whole run, the one server here that keeps object lock. It takes some
    20 seconds to start: tests that use it belong to a group (`tests.support.groups`).
    """
    cluster = RgwCluster(tmp_path_factory.mktemp("ceph") / "cluster")
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def ceph(ceph_cluster: RgwCluster) -> ObjectServer:
    return ceph_cluster.server
