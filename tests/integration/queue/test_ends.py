"""How attempts end when a server is behind, or much comes at once."""

from __future__ import annotations

from datetime import timedelta

import sqlalchemy as sa

from backup_server.db.tables import Event, Task
from backup_server.services import results, tasks
from backup_server.services.results import Applied
from proxy_worker.contracts.messages import TaskOutcome
from tests.integration.queue.rig import ON_POSTGRESQL
from tests.integration.queue.task_rows import NOW, POLICY, Rows, report


def test_what_was_said_and_not_read_yet_is_no_silence(rows: Rows) -> None:
    """A server that is behind with its reading must not take back what is being renewed."""
    task_id = rows.running()
    at = NOW + timedelta(seconds=60)
    with rows.db() as s:
        heard_until = NOW + timedelta(seconds=29)
        assert tasks.expire_leases(s, now=at, policy=POLICY, heard_until=heard_until) == []
    with rows.db() as s:
        heard_until = NOW + timedelta(seconds=31)
        [ended] = tasks.expire_leases(s, now=at, policy=POLICY, heard_until=heard_until)
    assert ended.task_id == task_id


@ON_POSTGRESQL
def test_leases_that_end_wait_for_nobody_who_holds_a_task(rows: Rows) -> None:
    """Who ends tasks in one order and who renews them in another would wait for each other for ever."""
    held, free = rows.running(), rows.running()
    at = NOW + timedelta(seconds=31)
    with rows.db() as first:
        first.execute(sa.update(Task).where(Task.id == held).values(leased_until=at))
        with rows.db() as second:
            second.execute(sa.text("SET LOCAL lock_timeout = '5s'"))
            [ended] = tasks.expire_leases(second, now=at, policy=POLICY)
    assert ended.task_id == free
    assert rows.get(held).state == "running"


def test_results_that_come_together_each_count_once(rows: Rows) -> None:
    done, failed, again, foreign = (rows.running() for _ in range(4))
    told = [
        ("px1", report(done)),
        ("px1", report(failed, outcome=TaskOutcome.FAILED, reason="no room")),
        ("px1", report(done)),
        ("px1", report(again, outcome=TaskOutcome.RETRY, reason="cut")),
        ("px2", report(foreign)),
        ("px1", report("unknown")),
    ]
    with rows.db() as s:
        applied = results.apply_results(s, told, policy=POLICY, now=NOW)
    assert applied == [
        Applied.ENDED,
        Applied.ENDED,
        Applied.STALE,
        Applied.WAITS,
        Applied.STALE,
        Applied.STALE,
    ]
    assert (rows.get(done).result, rows.get(failed).result) == ("success", "failed")
    assert (rows.get(again).state, rows.get(foreign).state) == ("pending", "running")
    with rows.db.read() as s:
        said = s.execute(
            sa.select(Event.name, Event.text).where(
                Event.task_id.in_([done, failed, again]), Event.name != "task.placed"
            )
        )
        assert sorted(said) == [
            ("task.finished", "disk: failed: no room"),
            ("task.finished", "disk: success"),
            ("task.retried", "disk: attempt 1 on px1 ended: cut; another follows"),
        ]
