"""What a task costs the database: it must not grow with the number of tasks or proxies."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from backup_server.db.states import TaskState
from backup_server.db.tables import OutboxRow, Task
from backup_server.scheduler.needs import retry_policy
from backup_server.services import leases, placement, results
from backup_server.services.placement import Decision
from backup_server.services.wishes import Wish
from proxy_worker.contracts.ids import Attempt, TaskId
from proxy_worker.contracts.messages import ResultReport, RunningTask, TaskOutcome
from tests.integration.queue.rig import TIMING, Rig, running, utc_now
from tests.integration.queue.task_rows import Rows
from tests.integration.queue.test_placing import NBDSSL, SAN, Site


@dataclass(slots=True)
class Count:
    trips: int = 0
    executions: int = 0


@contextmanager
def counted(rig: Rig | Rows) -> Iterator[Count]:
    """Statements of this thread."""
    count = Count()
    mine = threading.get_ident()

    def listen(_c: Any, _cursor: Any, text: str, parameters: Any, _context: Any, many: bool) -> None:
        if threading.get_ident() == mine and not text.startswith("BEGIN"):
            count.trips += 1
            count.executions += len(parameters) if many else 1

    sa.event.listen(rig.db.engine, "before_cursor_execute", listen)
    try:
        yield count
    finally:
        sa.event.remove(rig.db.engine, "before_cursor_execute", listen)


@pytest.fixture
def site(migrated_url: str) -> Iterator[Site]:
    directory = Path(tempfile.mkdtemp(prefix="vmhaul-q"))
    try:
        with running(
            Rig(directory, migrated_url, {"host_nfc_streams": 10_000, "host_nfc_memory_bytes": 1 << 40})
        ) as rig:
            made = Site(rig)
            # audits cost what they cost, and come when they come
            made.dispatcher._timing = replace(TIMING, audit_s=3600.0, facts_s=0.0)
            yield made
            made.close()
    finally:
        shutil.rmtree(directory)


def hand_out(site: Site, count: int) -> Count:
    """One round that hands out so many tasks."""
    site.alive()
    ids = site.tasks(count)
    with counted(site.rig) as found:
        assert site.dispatcher.step()
    rows = site.rig.tasks(ids)
    assert all(row.state == TaskState.RUNNING.value for row in rows)
    with site.rig.db() as s:
        assert s.scalar(sa.select(sa.func.count()).where(OutboxRow.task_id.in_(ids))) == count
    return found


def test_a_round_has_as_many_statements_for_one_task_as_for_a_hundred(site: Site) -> None:
    with site.rig.db() as s:
        s.execute(sa.text("UPDATE repositories SET max_tasks = 10000"))
    for number in range(3):
        site.proxy(f"san{number}", SAN, NBDSSL, slots=200)
    hand_out(site, 1)  # with the first audit
    hand_out(site, 1)  # after it, all that waits is compared
    few, many = hand_out(site, 1), hand_out(site, 100)
    assert many.trips == few.trips
    # the task, its message and its line in the log; the rest is of the round
    assert many.executions - few.executions <= 3 * 99
    for number in range(40):
        site.proxy(f"net{number:02}", NBDSSL, slots=4)
    hand_out(site, 1)  # reads what the new proxies found
    assert hand_out(site, 100).trips == few.trips


def test_an_idle_round_reads_nothing_of_what_waits(site: Site) -> None:
    site.proxy("san", SAN, slots=1)
    site.tasks(40)
    site.settle()
    assert not site.dispatcher.step()  # compares, after the audit
    with counted(site.rig) as few:
        assert not site.dispatcher.step()
    ids = site.tasks(200)
    with site.rig.db() as s:
        # made long ago, as what waits in the night has been
        old = utc_now().replace(year=2020)
        s.execute(sa.update(Task).where(Task.id.in_(ids)).values(created_at=old))
    site.settle()
    site.dispatcher.step()
    rows = 0

    def fetched(_conn: Any, cursor: Any, *_: Any) -> None:
        nonlocal rows
        rows += max(0, cursor.rowcount)

    with counted(site.rig) as many:
        sa.event.listen(site.rig.db.engine, "after_cursor_execute", fetched)
        assert not site.dispatcher.step()
    assert many.trips == few.trips
    assert rows < 60


def test_results_and_heartbeats_cost_the_same_each(site: Site) -> None:
    proxies = [site.proxy(f"net{number}", NBDSSL, slots=20) for number in range(4)]
    with site.rig.db() as s:
        s.execute(sa.text("UPDATE repositories SET max_tasks = 10000"))
    ids = site.tasks(60)
    site.settle()
    rows = site.rig.tasks(ids)
    assert {row.proxy_id for row in rows} == set(proxies)

    def beats(names: list[str]) -> Count:
        told = [
            leases.Beat(
                proxy_id=proxy,
                boot_id="b",
                running=[
                    RunningTask(task_id=TaskId(row.id), attempt=Attempt(row.attempt))
                    for row in rows
                    if row.proxy_id == proxy
                ],
            )
            for proxy in names
        ]
        with counted(site.rig) as found, site.rig.db() as s:
            answers = leases.renew_all(s, told, now=utc_now(), lease_s=30)
        assert all(len(mine) == 15 for mine in answers)
        return found

    # Their selves are not known yet.
    assert beats(proxies[:1]).trips == beats(proxies).trips == 3
    few, many = beats(proxies[:1]), beats(proxies)
    assert few.trips == many.trips == few.executions == many.executions == 2

    def ended(some: list[Task]) -> Count:
        policy = retry_policy(site.rig.settings)
        with counted(site.rig) as found, site.rig.db() as s:
            told = [(row.proxy_id or "", _result(row)) for row in some]
            applied = results.apply_results(s, told, policy=policy, now=utc_now())
            assert set(applied) == {results.Applied.ENDED}
        return found

    ten, thirty = ended(rows[:10]), ended(rows[10:40])
    assert thirty.trips == ten.trips
    # the task, and its line in the log
    assert thirty.executions - ten.executions <= 2 * 20


def _result(row: Task) -> ResultReport:
    return ResultReport(
        task_id=TaskId(row.id), attempt=Attempt(row.attempt), outcome=TaskOutcome.SUCCESS, reason=""
    )


def test_a_night_is_queued_in_parts_and_the_urgent_first(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backup_server.scheduler.dispatcher._QUEUED", 10)
    with site.rig.db() as s:
        s.execute(sa.text("UPDATE repositories SET max_tasks = 10000"))
    site.proxy("san", SAN, slots=4)
    site.tasks(35)
    [urgent] = site.tasks(1)
    with site.rig.db() as s:
        s.execute(sa.update(Task).where(Task.id == urgent).values(priority=0))
    site.alive()
    assert site.dispatcher.step()
    assert site.rig.task(urgent).state == TaskState.RUNNING.value
    assert len(site.dispatcher._indexed) == 10 - 4
    site.settle()
    assert len(site.dispatcher._indexed) == 36 - 4


def test_each_look_explains_a_few_places_and_all_in_their_turn(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a thousand places: those that nobody reaches at once, the others a few at a time."""
    monkeypatch.setattr("backup_server.scheduler.waiting._EXPLAINED_PLACES", 3)
    asked: list[str] = []
    real = placement.decide

    def decide(wish: Wish, *args: Any, **options: Any) -> Decision:
        assert wish.reach is not None
        asked.append(wish.reach.datastore)
        return real(wish, *args, **options)

    monkeypatch.setattr("backup_server.services.placement.decide", decide)
    site.proxy("net", NBDSSL, slots=1)
    first = site.tasks(1)
    site.settle()
    for number in range(8):
        site.tasks(1, datastore=f"ds{number}")
    [lost] = site.tasks(1, datastore="lost")
    with site.rig.db() as s:
        s.execute(sa.update(Task).where(Task.id == lost).values(allowed_modes=[SAN.value]))
    site.settle()
    asked.clear()
    for _ in range(3):
        site.dispatcher._audit(utc_now())
    assert asked.count("lost") == 3
    assert {f"ds{number}" for number in range(8)} <= set(asked)
    assert len(asked) <= 3 * (3 + 1)
    assert site.rig.task(first[0]).state == TaskState.RUNNING.value
