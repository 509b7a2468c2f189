"""Two servers on one PostgreSQL, of which one stops in the worst moment."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
import structlog

from backup_server.db.engine import Database, create_engine
from backup_server.db.tables import Leader
from backup_server.scheduler.leader import Leadership
from tests.support.postgres import create_database


def leadership(db: Database, owner: str) -> Leadership:
    return Leadership(
        db,
        owner,
        ttl_s=0.1,
        clock=lambda: datetime.now(UTC),
        log=structlog.get_logger(),
        on_gain=lambda: None,
    )


@pytest.mark.postgres
def test_a_leader_that_is_frozen_in_a_transaction_keeps_nobody_from_leading(
    postgres_url: str, postgres_template: str
) -> None:
    url = create_database(postgres_url, "frozen_leader", template=postgres_template)
    first, second = (Database(create_engine(url, idle_transaction_s=1.0)) for _ in range(2))
    assert not leadership(first, "first").step()
    taken = leadership(second, "second")
    with first.engine.connect() as frozen:
        # As a process does that is stopped between its UPDATE and its COMMIT.
        frozen.execute(sa.update(Leader).values(until=Leader.until))
        done = threading.Event()

        def take() -> None:
            while not taken.leading:
                taken.step()
            done.set()

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        assert done.wait(60), "the second server waits for a lock that the first one holds"
        thread.join()
        frozen.invalidate()
    for db in (first, second):
        db.close()


@pytest.mark.postgres
def test_a_connection_notices_a_peer_that_is_gone(postgres_url: str) -> None:
    engine = create_engine(postgres_url)
    with engine.connect() as connection:
        for name in ("idle_in_transaction_session_timeout", "tcp_user_timeout", "tcp_keepalives_idle"):
            assert connection.scalar(sa.text(f"SHOW {name}")) not in ("0", "7200"), name
    engine.dispose()
