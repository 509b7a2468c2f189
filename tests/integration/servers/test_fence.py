"""A leader that was stopped commits nothing once another server leads."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest
import sqlalchemy as sa
import structlog

from backup_server.config import Settings
from backup_server.db.engine import Database, create_engine
from backup_server.db.fenced import FencedDatabase, NotLeadingError
from backup_server.db.tables import Leader, Proxy, Setting, UtcDateTime, new_id
from backup_server.errors import SettingsError
from backup_server.main import Server, listen
from backup_server.scheduler.leader import Leadership
from backup_server.services import instances
from backup_server.services.storage_pool import FencedStoragePool
from backup_server.services.vcenter_pool import FencedVcenterPool
from tests.fakes.server import Rig
from tests.support.postgres import create_database, drop_database
from transports.vsphere.model import Secret


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 3, 2, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def database(postgres_url: str, postgres_template: str) -> Iterator[Database]:
    name = f"t{uuid4().hex}"
    found = Database(
        create_engine(create_database(postgres_url, name, template=postgres_template), pool_size=4)
    )
    yield found
    found.close()
    drop_database(postgres_url, name)


def server(database: Database, clock: Clock, name: str) -> Leadership:
    return Leadership(
        database,
        name,
        ttl_s=10,
        clock=clock,
        log=structlog.get_logger(),
        on_gain=lambda: None,
        time_of_database=lambda _, offset: sa.literal(clock() + offset, UtcDateTime),
        steady_s=lambda: clock().timestamp(),
    )


def names(database: Database) -> set[str]:
    with database.read() as s:
        return {row.name for row in s.query(Setting) if row.name.startswith("by-")}


def test_what_a_stopped_leader_had_begun_is_not_committed(database: Database) -> None:
    clock = Clock()
    first, second = server(database, clock, "first"), server(database, clock, "second")
    first.step()
    fenced = FencedDatabase(database, first.confirm)
    with fenced() as s:
        s.add(Setting(name="by-the-leader", value=""))

    def add(name: str, *, meanwhile: bool) -> None:
        with fenced() as s:
            s.add(Setting(name=name, value=""))
            s.flush()
            if meanwhile:
                clock.now += timedelta(seconds=11)
                second.step()

    with pytest.raises(NotLeadingError):
        add("by-the-stopped", meanwhile=True)
    assert second.leading
    with pytest.raises(NotLeadingError):
        add("by-the-late", meanwhile=False)
    assert names(database) == {"by-the-leader"}


def test_clocks_of_the_servers_play_no_part(database: Database) -> None:
    """Ten minutes ahead, ten minutes behind: the row is judged by the database's clock."""

    def by_its_own_clock(name: str, wrong_s: float) -> Leadership:
        return Leadership(
            database,
            name,
            ttl_s=30,
            clock=lambda: datetime.now(UTC) + timedelta(seconds=wrong_s),
            log=structlog.get_logger(),
            on_gain=lambda: None,
        )

    right, ahead, behind = (
        by_its_own_clock(*one) for one in (("right", 0), ("ahead", 600), ("behind", -600))
    )
    for first, others in (
        (right, (ahead, behind)),
        (ahead, (behind, right)),
        (behind, (right, ahead)),
    ):
        first.step()
        for one in (*others, first, *others):
            one.step()
        assert [one.leading for one in (first, *others)] == [True, False, False]
        with database.read() as s:
            until = s.get_one(Leader, "scheduler").until
        assert abs((until - datetime.now(UTC)).total_seconds()) < 120
        first.release()
    assert behind.fence == right.fence + 2


def test_a_lead_that_ran_out_and_that_nobody_took_is_still_good(database: Database) -> None:
    clock = Clock()
    first = server(database, clock, "first")
    first.step()
    clock.now += timedelta(seconds=60)
    with FencedDatabase(database, first.confirm)() as s:
        s.add(Setting(name="by-the-leader", value=""))
    assert names(database) == {"by-the-leader"}


def test_a_server_that_does_not_lead_leaves_vcenters_alone() -> None:
    pool = FencedVcenterPool(None, lambda: False)  # type: ignore[arg-type] - it is never asked
    with pytest.raises(NotLeadingError):
        pool.get("vc1")


def test_a_server_that_does_not_lead_leaves_storage_systems_alone() -> None:
    client = object()
    clients = SimpleNamespace(drivers={}, get=lambda system_id: client)
    leads = True
    pool = FencedStoragePool(clients, lambda: leads)  # type: ignore[arg-type]
    assert pool.get("array1") is client
    leads = False
    with pytest.raises(NotLeadingError):
        pool.get("array1")


def test_sessions_and_tidying_up_work_behind_the_fence(
    postgres_url: str, postgres_template: str, tmp_path: Path
) -> None:
    name = f"t{uuid4().hex}"
    rig = Rig(tmp_path, create_database(postgres_url, name, template=postgres_template))
    with listen("127.0.0.1", 0, "") as listener:
        made = Server(rig.ctx, Secret("token"), listener)
    for part in (made._engine, made._janitor):
        for pool in (part._ctx.vcenters, part._ctx.storage):
            with pytest.raises(NotLeadingError):
                pool.get("one")
        with pytest.raises(NotLeadingError), part._ctx.db() as s:
            s.add(Setting(name="by-one-that-does-not-lead", value=""))
    rig.close()
    drop_database(postgres_url, name)


# ---- two data directories -------------------------------------------------------------------------


def settings_of(directory: Path, **values: bool) -> Settings:
    directory.mkdir(exist_ok=True)
    return Settings(data_dir=directory, **values)  # type: ignore[arg-type]


def test_a_server_with_other_keys_is_refused_unless_they_are_to_be_accepted(
    database: Database, tmp_path: Path
) -> None:
    first, second = settings_of(tmp_path / "a"), settings_of(tmp_path / "b")
    instances.check_keys(database, first)
    instances.check_keys(database, first)
    with pytest.raises(SettingsError, match=r"copy the data directory's server\.key"):
        instances.check_keys(database, second)
    for name in ("server.key", "server-signing.key"):
        shutil.copy(first.data_dir / name, second.data_dir / name)
    instances.check_keys(database, second)
    lost = settings_of(tmp_path / "c", accept_new_keys=True)
    instances.check_keys(database, lost)
    with pytest.raises(SettingsError):
        instances.check_keys(database, first)


def local_proxy(name: str) -> Proxy:
    return Proxy(
        id=new_id(),
        name=name,
        local=True,
        slots=1,
        join_token_hash=None,
        created_at=datetime(2026, 3, 2, tzinfo=UTC),
    )


def test_each_data_directory_runs_its_own_local_proxies(database: Database, tmp_path: Path) -> None:
    here, there = settings_of(tmp_path / "a"), settings_of(tmp_path / "b")
    (tmp_path / "a" / "proxies" / "old").mkdir(parents=True)
    with database() as s:
        new, old = local_proxy("new"), local_proxy("old")
        s.add_all([new, old])
        s.flush()
        instances.claim(s, there, new.id)
        instances.adopt(s, there)
        instances.adopt(s, here)
        rows = [new, old]
        assert [row.name for row in instances.of_here(s, here, rows)] == ["old"]
        assert [row.name for row in instances.of_here(s, there, rows)] == ["new"]
        s.delete(new)
        s.flush()
        instances.adopt(s, here)
        assert [row.value for row in s.query(Setting) if "home" in row.name] == [
            instances.instance_id(here)
        ]
