"""Two servers whose first start on a database is at the same moment, and two whose clocks differ."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa

from backup_server.credentials import load_or_create_key
from backup_server.db.engine import Database, create_engine
from backup_server.db.starting import one_at_a_time
from backup_server.db.tables import Proxy, Setting
from backup_server.errors import UnavailableError
from tests.chaos.parts import FalseClock
from tests.support.postgres import create_database, drop_database

from .rig import KEYS, TAKEOVER_S, Server, leader, takeover_s, wait_for

CLOCK_SOURCE = Path(__file__).parents[2] / "chaos" / "false_clock.c"


@pytest.fixture
def empty_url(postgres_url: str) -> Iterator[str]:
    """A database in which nothing is yet."""
    name = f"t{uuid4().hex}"
    yield create_database(postgres_url, name)
    drop_database(postgres_url, name)


def with_keys(first: Server, *others: Server) -> None:
    for key in KEYS:
        load_or_create_key(first.data / key)
        for other in others:
            shutil.copy(first.data / key, other.data / key)


def end_all(*servers: Server) -> None:
    for server in servers:
        if server.process is not None and server.process.poll() is None:
            server.end(signal.SIGKILL)
        server.close()


def test_two_servers_start_for_the_first_time_at_once(empty_url: str, tmp_path: Path) -> None:
    servers = [Server(tmp_path / name, empty_url) for name in "ab"]
    with_keys(*servers)
    database = Database(create_engine(empty_url, pool_size=2))
    try:
        for server in servers:
            server.begin()
        for server in servers:
            wait_for("a server's start", lambda server=server: server.is_up)
        wait_for("one of them leads", lambda: any(server.leads() for server in servers))
        with database.read() as s:
            names = [row.name for row in s.scalars(sa.select(Setting))]
            assert len(s.scalars(sa.select(Proxy)).all()) == 1
        assert {"server_id", "default_proxy_made", "flower_broker_credential"} <= set(names), names
        homes = [server for server in servers if any((server.data / "proxies").glob("*"))]
        assert len(homes) == 1
    finally:
        end_all(*servers)
        database.close()


def test_of_two_with_different_keys_one_starts_and_the_other_says_why(
    empty_url: str, tmp_path: Path
) -> None:
    servers = [Server(tmp_path / name, empty_url) for name in "ab"]
    try:
        for server in servers:
            server.begin()
        ended = wait_for(
            "one gives up", lambda: [one for one in servers if one.process and one.process.poll()]
        )
        [other] = [one for one in servers if one not in ended]
        wait_for("the other's start", lambda: other.is_up)
        assert len(ended) == 1
        assert "is not the key with which this database was begun" in ended[0].log
        assert "vmhaul keys export" in ended[0].log
    finally:
        end_all(*servers)


def test_a_start_that_stands_still_keeps_others_waiting_for_a_while_only(
    postgres_url: str, empty_url: str
) -> None:
    first, second = (Database(create_engine(empty_url, pool_size=2)) for _ in range(2))
    order = []

    def stand_still() -> None:
        with one_at_a_time(first, longest_s=0.2):
            with one_at_a_time(second):
                order.append("second")
            order.append("first")

    with pytest.raises(UnavailableError, match="start again"):
        stand_still()
    assert order == ["second", "first"]
    for database in (first, second):
        database.close()


@pytest.fixture
def false_clocks(tmp_path: Path) -> tuple[FalseClock, FalseClock]:
    """One ten minutes ahead, and one ten minutes behind."""
    library = tmp_path / "false_clock.so"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O2", "-o", str(library), str(CLOCK_SOURCE)],
        check=True,
        timeout=120,
    )
    ahead, behind = (FalseClock(tmp_path / f"clock{number}", library) for number in range(2))
    ahead.shift(600)
    behind.shift(-600)
    return ahead, behind


def assert_goes_on_leading(database: Database, found: tuple[str, int], other: Server) -> None:
    """Whoever has the row renews it several times, and the other looks as often."""
    renewed = until(database)
    for _ in range(3):
        renewed = wait_for("a renewal", lambda last=renewed: later(database, last))
    assert leader(database) == found
    assert not other.leads()


def test_servers_whose_clocks_are_wrong_by_ten_minutes_each_way(
    postgres_url: str,
    postgres_template: str,
    tmp_path: Path,
    false_clocks: tuple[FalseClock, FalseClock],
) -> None:
    name = f"t{uuid4().hex}"
    url = create_database(postgres_url, name, template=postgres_template)
    ahead, behind = (
        Server(tmp_path / where, url, environment=clock.environment())
        for where, clock in zip("ab", false_clocks, strict=True)
    )
    with_keys(ahead, behind)
    database = Database(create_engine(url, pool_size=2))
    try:
        ahead.start()
        wait_for("the first leads", ahead.leads)
        first = leader(database)
        behind.start()
        assert_goes_on_leading(database, first, behind)
        ahead.end(signal.SIGKILL)
        assert takeover_s(database, first[0]) < TAKEOVER_S
        wait_for("the other leads", behind.leads)
        second = leader(database)
        ahead.start()
        assert_goes_on_leading(database, second, ahead)
    finally:
        end_all(ahead, behind)
        database.close()
        drop_database(postgres_url, name)


def until(database: Database) -> str:
    with database.read() as s:
        return str(s.scalar(sa.text("SELECT until FROM leader")))


def later(database: Database, last: str) -> str:
    """Until when the row is held, once it is another time than `last`."""
    found = until(database)
    return "" if found == last else found
