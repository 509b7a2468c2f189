"""The claim index says what the dispatcher knows, whatever fails between the two."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa

from backup_server.db.states import Result, TaskState
from backup_server.db.tables import Proxy, Task
from backup_server.scheduler import dispatcher as dispatching
from backup_server.scheduler import facts
from tests.integration.queue.rig import ON_SQLITE, TIMING, Rig, running, utc_now
from tests.integration.queue.test_placing import NBDSSL, Site
from transports.system import uptime_s

pytestmark = ON_SQLITE


@pytest.fixture
def site(migrated_url: str) -> Iterator[Site]:
    directory = Path(tempfile.mkdtemp(prefix="vmhaul-q"))
    wide = {"host_nfc_streams": 10_000, "host_nfc_memory_bytes": 1 << 40}
    try:
        with running(Rig(directory, migrated_url, wide)) as rig:
            made = Site(rig)
            made.dispatcher._timing = replace(TIMING, audit_s=3600.0, facts_s=0.0)
            set_most(made, 10_000)
            yield made
            made.close()
    finally:
        shutil.rmtree(directory)


def set_most(site: Site, tasks: int) -> None:
    """Of the repository."""
    with site.rig.db() as s:
        s.execute(sa.text(f"UPDATE repositories SET max_tasks = {tasks}"))


def set_proxy(site: Site, proxy_id: str, **values: Any) -> None:
    with site.rig.db() as s:
        s.execute(sa.update(Proxy).where(Proxy.id == proxy_id).values(**values))


def step(site: Site) -> bool:
    site.alive()
    return site.dispatcher.step()


def states(site: Site, ids: list[str]) -> list[str]:
    return [row.state for row in site.rig.tasks(ids)]


def count_running(site: Site, ids: list[str]) -> int:
    return states(site, ids).count(TaskState.RUNNING.value)


def end_all(site: Site, ids: list[str]) -> None:
    """As a session that is cancelled ends what it has not handed out."""
    with site.rig.db() as s:
        s.execute(
            sa.update(Task)
            .where(Task.id.in_(ids))
            .values(state=TaskState.DONE.value, result=Result.CANCELLED.value)
        )


def test_wishes_that_somebody_else_surveyed_first_reach_the_index(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than one round surveys: an audit looks at all of them, and claims at some."""
    monkeypatch.setattr(dispatching, "_SURVEYED", 3)
    site.proxy("px", NBDSSL, slots=40)
    ids = [site.tasks(1, datastore=f"ds{number}")[0] for number in range(10)]
    site.settle()
    site.settle()
    assert count_running(site, ids) == 10


def test_a_fleet_that_changes_in_every_round_keeps_no_wish_waiting(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatching, "_SURVEYED", 1)
    proxy_id = site.proxy("px", NBDSSL, slots=60)
    step(site)  # with the audit
    ids = [site.tasks(1, datastore=f"ds{number}")[0] for number in range(4)]
    for slots in range(59, 51, -1):
        set_proxy(site, proxy_id, slots=slots)
        step(site)
    assert count_running(site, ids) == 4


def test_a_database_that_fails_while_the_index_is_filled(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What runs is counted all the same, and a later loss of the index is noticed."""
    site.proxy("px", NBDSSL, slots=1)
    ids = site.tasks(2)
    site.settle()
    assert count_running(site, ids) == 1
    site.dispatcher.forget_index()

    def away(_: Any) -> list[Any]:
        raise sa.exc.OperationalError("SELECT", None, Exception("it is away"))

    with monkeypatch.context() as broken:
        broken.setattr(facts, "running_claims", away)
        with pytest.raises(sa.exc.OperationalError):
            step(site)
    step(site)
    assert count_running(site, ids) == 1
    with site.rig.broker.client() as client:
        assert client.get("vmhaul:epoch")


def lose_answer(site: Site, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A round in which the broker does what that method asks for, and its answer is lost."""
    index = site.dispatcher._index
    real: Callable[..., Any] = getattr(index, name)

    def lost(*args: Any) -> None:
        real(*args)
        raise redis.TimeoutError("Timeout reading from socket")

    with monkeypatch.context() as cut:
        cut.setattr(index, name, lost)
        with pytest.raises(redis.TimeoutError):
            step(site)


@pytest.mark.parametrize("name", ["set_proxies", "set_places"])
def test_a_proxy_that_was_off_while_an_answer_was_lost(
    site: Site, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """And is on again before the next look: nothing seems to have changed."""
    proxy_id = site.proxy("px", NBDSSL, slots=1)
    ids = site.tasks(2)
    site.settle()
    [first] = [row.id for row in site.rig.tasks(ids) if row.state == TaskState.RUNNING.value]
    set_proxy(site, proxy_id, enabled=False)
    lose_answer(site, monkeypatch, name)
    set_proxy(site, proxy_id, enabled=True)
    site.end(first)
    site.settle()
    assert count_running(site, ids) == 1


def test_a_limit_that_was_lower_while_an_answer_was_lost(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_most(site, 2)
    site.proxy("px", NBDSSL)
    ids = site.tasks(1)
    site.settle()
    set_most(site, 1)
    lose_answer(site, monkeypatch, "set_limits")
    set_most(site, 2)
    ids += site.tasks(1)
    site.settle()
    assert count_running(site, ids) == 2


def test_what_ends_while_it_is_to_be_queued_is_not_queued(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatching, "_QUEUED", 2)
    site.proxy("px", NBDSSL, slots=1, enabled=False)
    ids = site.tasks(8)
    assert step(site)
    site.dispatcher._compare = False  # as between two audits
    left = [task_id for task_id in ids if task_id not in site.dispatcher._indexed]
    assert len(left) == 6
    end_all(site, left[1:])
    while step(site):
        pass
    assert set(site.dispatcher._indexed) == set(ids) - set(left[1:])


def test_what_is_new_does_not_wait_until_all_of_many_are_queued(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatching, "_QUEUED", 5)
    site.proxy("px", NBDSSL, slots=1)
    many = site.tasks(40)
    assert step(site)
    site.dispatcher._compare = False  # as between two audits
    [urgent] = site.tasks(1)
    with site.rig.db() as s:
        s.execute(sa.update(Task).where(Task.id == urgent).values(priority=0))
    step(site)
    site.end(next(row.id for row in site.rig.tasks(many) if row.state == TaskState.RUNNING.value))
    step(site)
    assert site.rig.task(urgent).state == TaskState.RUNNING.value


def test_what_ended_by_the_hundreds_is_not_claimed_piece_by_piece(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatching, "_CLAIMS", 2)
    proxy_id = site.proxy("px", NBDSSL, enabled=False)
    ids = site.tasks(12)
    while step(site):
        pass
    assert set(site.dispatcher._indexed) == set(ids)
    end_all(site, ids)
    set_proxy(site, proxy_id, enabled=True)
    site.dispatcher._audited_s = uptime_s()
    site.dispatcher._compare = False
    step(site)
    step(site)
    assert not site.dispatcher._indexed


def test_a_leader_that_was_stopped_in_the_middle_of_a_round_writes_nothing(site: Site) -> None:
    """Another one filled the index meanwhile, and would not know of it."""
    proxy_id = site.proxy("px", NBDSSL, slots=7)
    ids = site.tasks(1)
    site.settle()
    set_proxy(site, proxy_id, slots=3)
    set_most(site, 5)
    leads = iter([True])
    site.dispatcher._leading = lambda: next(leads, False)
    assert not step(site)
    with site.rig.broker.client() as client:
        limits: Any = client.hgetall("vmhaul:lim")
    assert limits[f"p:{proxy_id}"] == "7"
    assert "5" not in limits.values()
    site.dispatcher._leading = lambda: True
    site.settle()
    with site.rig.broker.client() as client:
        assert client.hget("vmhaul:lim", f"p:{proxy_id}") == "3"
    assert count_running(site, ids) == 1


def test_places_that_end_while_the_fleet_changes_are_forgotten(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As there are more than one round surveys anew."""
    proxy_id = site.proxy("px", NBDSSL, slots=1)
    ids = site.tasks(2, datastore="gone")
    site.settle()
    monkeypatch.setattr(dispatching, "_SURVEYED", 0)
    end_all(site, ids)
    site.proxy("new", NBDSSL)
    step(site)
    site.dispatcher._audit(utc_now())
    step(site)
    assert not site.dispatcher._placed
    with site.rig.broker.client() as client:
        assert not client.exists(f"vmhaul:elig:{proxy_id}")
        assert not list(client.scan_iter("vmhaul:reach:*"))


def test_a_clock_that_was_set_back_keeps_nobody_from_looking_at_the_fleet(site: Site) -> None:
    """While one round follows the other, the fleet is read every half second."""
    proxy_id = site.proxy("px", NBDSSL)
    step(site)
    assert site.dispatcher._view.by_id[proxy_id].enabled
    set_proxy(site, proxy_id, enabled=False)
    site.dispatcher._ctx = replace(site.rig.ctx, clock=lambda: utc_now() - timedelta(hours=1))
    site.dispatcher._busy = True
    step(site)
    assert not site.dispatcher._view.by_id[proxy_id].enabled
