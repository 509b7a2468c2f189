"""Times in tasks that a clock which was ahead has left behind."""

from __future__ import annotations

from datetime import datetime, timedelta

import sqlalchemy as sa

from backup_server.db.engine import Database
from backup_server.db.states import TaskState
from backup_server.db.tables import Task
from backup_server.services.results import RetryPolicy, lock


def shorten_waits(database: Database, *, now: datetime, lease_s: float, policy: RetryPolicy) -> int:
    """Bring leases and pauses back that reach further ahead than they can: the clock was ahead when they were
    written, and went back since. Without this a task would wait for as long as the clock was wrong. Answers how many.
    """
    lease = timedelta(seconds=lease_s)
    # Twice a lease: two servers that lead one after the other need not have the same time to the second.
    leased = sa.and_(Task.state == TaskState.RUNNING.value, Task.leased_until > now + 2 * lease)
    paused = sa.and_(Task.state == TaskState.PENDING.value, Task.not_before > now + lease)
    with database.read() as s:
        far = [
            (row.id, row.not_before, policy.wait_after(row.failures))
            for row in s.execute(sa.select(Task.id, Task.not_before, Task.failures).where(paused))
            if row.not_before > now + policy.wait_after(row.failures) + lease
        ]
        any_leased = s.scalar(sa.select(Task.id).where(leased).limit(1)) is not None
    if not far and not any_leased:
        return 0
    count = 0
    with database() as s:
        lock(s, sa.select(Task.id).where(sa.or_(leased, paused)))
        result = s.execute(sa.update(Task).where(leased).values(leased_until=now + lease))
        count += int(result.rowcount)  # type: ignore[attr-defined]
        for task_id, until, wait in far:
            again = sa.update(Task).where(Task.id == task_id, paused, Task.not_before == until)
            changed = s.execute(again.values(not_before=now + wait))
            count += int(changed.rowcount)  # type: ignore[attr-defined]
    return count
