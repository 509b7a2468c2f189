"""Who changes many tasks at once locks them in one order: two then wait for each other, and not in a circle.

Shown on PostgreSQL, where several write at the same time. Somebody holds the task that comes first; whoever waits for it
must hold none of those behind it, in whatever order it was given them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from backup_server.config import Settings
from backup_server.db.engine import open_database
from backup_server.db.tables import Proxy, Task
from backup_server.scheduler.applying import Batch, Heard, ReportWriter
from backup_server.scheduler.rates import RateKeeper
from backup_server.services import leases, pending, results, tasks, waits
from proxy_worker.contracts.ids import Attempt, TaskId
from proxy_worker.contracts.messages import ProgressReport, RunningTask
from tests.integration.queue.rig import ON_POSTGRESQL, LightContext, wait_for
from tests.integration.queue.task_rows import NOW, POLICY, Rows, report
from tests.integration.queue.test_hostile_reports import beat
from tests.support.postgres import somebody_waits

pytestmark = ON_POSTGRESQL
FIRST, SECOND, THIRD = (f"{number}0000000-0000-0000-0000-000000000000" for number in "123")


@pytest.fixture
def rows(migrated_url: str) -> Iterator[Rows]:
    db = open_database(migrated_url)
    made = Rows(db)
    for task_id in (THIRD, SECOND, FIRST):  # as they lie in the table
        made.running(id=task_id)
    yield made
    db.close()


def _context(rows: Rows) -> Any:
    return LightContext(settings=Settings(data_dir=Path("unused")), db=rows.db, clock=lambda: NOW)


def _cancel(rows: Rows) -> None:
    with rows.db() as s:
        tasks.cancel_session_tasks(s, rows.session_id, NOW)


def _progress(task_id: str) -> ProgressReport:
    return ProgressReport(
        task_id=TaskId(task_id),
        attempt=Attempt(1),
        phase="reading",
        total_bytes=10,
        done_bytes=1,
        read_bytes=1,
        stored_bytes=1,
        bytes_per_s=1.0,
        bottleneck="source",
    )


def _note_progress(rows: Rows) -> None:
    with rows.db() as s:
        leases.record_progress(s, [("px1", _progress(one)) for one in (THIRD, FIRST)])


def _store_rates(rows: Rows) -> None:
    keeper: Any = SimpleNamespace(_ctx=_context(rows))
    found = [SimpleNamespace(id=one, attempt=1, rate_bytes_per_s=None) for one in (THIRD, FIRST)]
    RateKeeper._store(keeper, found, {THIRD: 7, FIRST: 7})


def _apply(rows: Rows, batch: Batch) -> None:
    def refuse(_: str, error: Exception) -> None:
        raise error

    with rows.db() as s:
        ReportWriter(_context(rows), refuse).apply(s, batch)


def _read_reports(rows: Rows) -> None:
    """A result of one task, and a heartbeat that holds another."""
    held = RunningTask(task_id=TaskId(FIRST), attempt=Attempt(1))
    batch = Batch(
        results=[("px1", report(THIRD))],
        heartbeats={"px1": [Heard(report=beat("px1", "boot1", running=(held,)), skew_s=0.0)]},
        progress={"px1": ("px1", _progress(SECOND))},
    )
    _apply(rows, batch)


def _hear_a_new_self(rows: Rows) -> None:
    """A result of one task, and a worker that was started anew, which ends the others."""
    heard = Heard(report=beat("px1", "boot2"), skew_s=0.0)
    _apply(rows, Batch(results=[("px1", report(THIRD))], heartbeats={"px1": [heard]}))


def _make_them_wait(rows: Rows) -> None:
    with rows.db() as s:
        s.execute(sa.update(Task).values(state="pending"))


def _give_up(rows: Rows) -> None:
    with rows.db() as s:
        pending.give_up_all(s, {THIRD: "no way", FIRST: "no way"}, NOW)


def _shorten(rows: Rows) -> None:
    """The clock was an hour ahead, and is not any more."""
    hour = timedelta(hours=1)
    assert waits.shorten_waits(rows.db, now=NOW - hour, lease_s=30, policy=POLICY) == 3


def _free_while(rows: Rows, change: Callable[[Rows], None], statement: sa.Update) -> list[str]:
    """The tasks that are free while `change` waits for what the statement holds."""
    done: list[str] = []

    def run() -> None:
        change(rows)
        done.append("done")

    waits = threading.Thread(target=run)
    with rows.db() as holder:
        holder.execute(statement)
        waits.start()
        wait_for(lambda: somebody_waits(rows.db), "the wait for what is held")
        with rows.db() as s:
            free = s.scalars(
                sa.select(Task.id).order_by(Task.id).with_for_update(skip_locked=True)
            ).all()
    waits.join(60)
    assert done == ["done"]
    return list(free)


@pytest.mark.parametrize(
    "change", [_cancel, _note_progress, _store_rates, _read_reports, _hear_a_new_self, _shorten]
)
def test_who_waits_for_the_first_task_holds_none_behind_it(
    rows: Rows, change: Callable[[Rows], None]
) -> None:
    held = sa.update(Task).where(Task.id == FIRST).values(title="held")
    assert _free_while(rows, change, held) == [SECOND, THIRD]


@pytest.mark.parametrize("change", [_cancel, _give_up])
def test_who_ends_what_waits_holds_none_behind_the_first(
    rows: Rows, change: Callable[[Rows], None]
) -> None:
    _make_them_wait(rows)
    held = sa.update(Task).where(Task.id == FIRST).values(title="held")
    assert _free_while(rows, change, held) == [SECOND, THIRD]


def test_who_explains_waits_for_nobody(rows: Rows) -> None:
    """A task that is held is about to change, and what is said of it is for people."""
    _make_them_wait(rows)
    with rows.db() as holder:
        holder.execute(sa.update(Task).where(Task.id == FIRST).values(title="held"))
        with rows.db() as s:
            s.execute(sa.text("SET LOCAL lock_timeout = '20s'"))
            pending.explain(s, [([THIRD, FIRST], {"why": "a"}), ([SECOND], {"why": "b"})])
    assert [rows.get(one).decision for one in (SECOND, THIRD)] == [{"why": "b"}, {"why": "a"}]


def test_a_result_that_counts_for_nothing_waits_for_nobody(rows: Rows) -> None:
    """Of a task that waits for its next attempt, and of one that another proxy has."""
    with rows.db() as s:
        s.execute(sa.update(Task).where(Task.id == FIRST).values(state="pending"))
        s.execute(sa.update(Task).where(Task.id == SECOND).values(proxy_id="px2"))
    told = [("px1", report(one)) for one in (THIRD, SECOND, FIRST)]
    with rows.db() as holder:
        held = sa.update(Task).where(Task.id.in_([FIRST, SECOND])).values(title="held")
        holder.execute(held)
        with rows.db() as s:
            s.execute(sa.text("SET LOCAL lock_timeout = '20s'"))
            applied = results.apply_results(s, told, policy=POLICY, now=NOW)
    assert applied == [results.Applied.ENDED, results.Applied.STALE, results.Applied.STALE]


def test_reports_wait_for_a_proxy_that_is_revoked_before_they_take_its_tasks(rows: Rows) -> None:
    held = sa.update(Proxy).where(Proxy.id == "px1").values(signing_key=None)
    assert _free_while(rows, _read_reports, held) == [FIRST, SECOND, THIRD]
